"""Ctrl-C ends a verb, and is never lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload, no-any-return]


LISTEN = "import os, signal; from hmoe.cli.interrupts import INTERRUPTS; INTERRUPTS.install({code})\n"
HIT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("code", [130, 0])
@pytest.mark.parametrize(
    "where",
    [
        "import hit",  # an import that makes another error of it
        "class A:\n def __del__(self): os.kill(os.getpid(), signal.SIGINT)\nA()\nimport time; time.sleep(9)",
        "try: os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt: INTERRUPTS._say_and_end()",
    ],
)
def test_an_interrupt_is_not_lost_wherever_it_comes(tmp_path: Path, where: str, code: int) -> None:
    (tmp_path / "hit.py").write_text(
        f"try:\n {HIT}\nexcept BaseException: raise ImportError('initialisation failed')\n"
    )
    result = python(LISTEN.format(code=code) + where, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (code, "hmoe: interrupted\n" if code else "")


def test_whoever_ignores_interrupts_goes_on_ignoring_them() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + LISTEN.format(code=130)
    assert python(code + "os.kill(os.getpid(), signal.SIGINT); print('on')").stdout == "on\n"


def test_a_verb_ends_with_130_and_a_line(tmp_path: Path) -> None:
    """The recipe is a pipe, which nobody writes to: the verb waits in it."""
    os.mkfifo(tmp_path / "r.yaml")
    command = [sys.executable, "-m", "hmoe", "plan", str(tmp_path / "r.yaml")]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
        (tmp_path / "r.yaml").open("w"),
    ):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (None, "hmoe: interrupted\n")
    assert process.returncode == 130
