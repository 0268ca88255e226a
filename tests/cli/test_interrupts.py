"""Ctrl-C, lost exit codes, and standard streams that are closed, full or left by their reader."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from hmoe import ConfigError
from hmoe.cli.main import app, run
from hmoe.cli.streams import OutputStream
from hmoe.storage import lock_file, utf8_name


def python(code: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("raised", "verb", "code", "said"),
    [
        (KeyboardInterrupt(), "plan", 130, "hmoe: interrupted\n"),
        (KeyboardInterrupt(), "serve", 0, ""),
        (KeyboardInterrupt(), "chat", 0, ""),
        (typer.Exit(3), "plan", 3, ""),
        (EOFError("x"), "plan", None, ""),
    ],
)
def test_no_exit_code_is_lost(
    raised: BaseException, verb: str, code: int | None, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop() -> None:
        raise raised

    stop.__name__ = verb

    command = next(c for c in app.registered_commands if (c.name or c.callback.__name__) == verb)  # type: ignore[union-attr]
    monkeypatch.setattr(command, "callback", stop)
    monkeypatch.setattr(command, "context_settings", {})
    if code is None:  # what nobody foresaw is no interrupt
        with pytest.raises(EOFError):
            run([verb])
        return
    assert run([verb]) == code
    assert capsys.readouterr().err == said


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
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, (tmp_path / "r.yaml").open("w"):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (None, "hmoe: interrupted\n")
    assert process.returncode == 130


def test_streams_that_are_closed_or_full(tmp_path: Path) -> None:
    """Files get no number of a closed stream; a full output is told and counts."""

    def shell(words: str) -> int:
        return subprocess.run(["bash", "-c", f"{sys.executable} -m hmoe {words}"], cwd=tmp_path, check=False).returncode

    assert shell("config tiny >&- 2>&- <&-") == 0
    assert shell("config nope >&- 2>&-") == 2
    assert shell("config tiny >/dev/full 2>err") == 4
    assert (tmp_path / "err").read_text().startswith("hmoe: error: standard output: No space left on device")


@pytest.mark.parametrize("full", [True, False], ids=["full", "left"])
def test_what_cannot_be_printed_is_lost_and_the_work_goes_on(full: bool) -> None:
    if full:
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    with OutputStream(open(writer, "wb"), "utf-8", line_buffering=True) as stream:
        for _ in range(3):
            print("x" * 10_000, file=stream, flush=True)
        assert (stream.failure is not None) is full


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    save_file({"a": torch.arange(3)}, tmp_path / "a")
    (tmp_path / "a").rename(file)
    with utf8_name(file) as name:
        assert load_file(name)["a"].tolist() == [0, 1, 2]
    with utf8_name(tmp_path) as name:
        assert name == str(tmp_path)


def test_a_name_that_cannot_be_used_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tiny", "--dry-run", "data.path=caf\udce9"]) == 2
    assert run(["eval", "/nowhere/caf\udce9"]) == 2
    assert "/nowhere/caf\ufffd: not a run folder" in capsys.readouterr().err


def test_a_system_without_file_locks_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / "lock").open("w") as file, pytest.raises(ConfigError, match="on Windows use WSL"):
        lock_file(file)
    assert (
        python("import sys; sys.modules['fcntl'] = None; import hmoe.data.prepare, hmoe.train.run_folder").returncode
        == 0
    )


def test_info_names_every_extra(capsys: pytest.CaptureFixture[str]) -> None:
    from hmoe.cli.info import list_packages

    assert run(["info"]) == 0
    shown = capsys.readouterr().out
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert [extra for extra in declared if f"extra [{extra}]" not in shown] == []
    assert {"transformers", "accelerate"} <= set(list_packages("finetune"))
    assert "extra [hf]                   installed" in shown


def test_the_kernels_builder_helps_and_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    from hmoe.kernels.build import main

    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "usage: python -m hmoe.kernels.build" in capsys.readouterr().out
    assert main(["-j4"]) == 2
    assert capsys.readouterr().err.startswith("hmoe: error: -j4: unknown argument")


def test_chat_needs_neither_readline_nor_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from hmoe.cli.chat import read_lines

    monkeypatch.setattr(sys, "stdin", None)
    assert list(read_lines()) == []

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setitem(sys.modules, "readline", None)
    answers = iter(["hello"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert next(read_lines()) == "hello"
