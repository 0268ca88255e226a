"""A silent verb says on a terminal what it is doing, and nothing elsewhere."""

import os
import pty
import subprocess
import sys

import pytest

from hmoe.cli import waiting
from hmoe.cli.streams import OutputStream

VERB = """
import sys, threading, time
from hmoe.cli.streams import prepare_streams
prepare_streams()
from hmoe.cli import waiting
waiting._SILENT_SECONDS = 0.01
with waiting.WaitingNote([{verb!r}]):
    time.sleep(0.3)
    {act}
print("done", threading.active_count())
"""


def run_on_terminal(verb: str, act: str, **environment: str) -> bytes:
    """What is shown on a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", VERB.format(verb=verb, act=act)]
    settings = {**os.environ, "TERM": "xterm", **environment}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=settings) as process:
        process.wait(60)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    return shown


def test_the_note_is_shown_and_erased_by_the_first_output() -> None:
    shown = run_on_terminal("eval", "print('first'); time.sleep(0.8); print('second')")
    assert shown == b"\r\x1b[Kloading torch ... 0 s\r\x1b[Kfirst\r\nsecond\r\ndone 1\r\n"


def test_an_interrupt_erases_it() -> None:
    act = "from hmoe.cli.interrupts import INTERRUPTS; INTERRUPTS.exit_code = 130; INTERRUPTS._say_and_end()"
    shown = run_on_terminal("eval", act)
    assert shown == b"\r\x1b[Kloading torch ... 0 s\r\x1b[Khmoe: interrupted\r\n"


@pytest.mark.parametrize(("verb", "term"), [("plan", "xterm"), ("eval", "dumb")])
def test_no_note_is_shown_where_none_is_wanted(verb: str, term: str) -> None:
    assert run_on_terminal(verb, "pass", TERM=term) == b"done 1\r\n"


def test_there_is_no_thread_without_a_terminal() -> None:
    with waiting.WaitingNote(["eval"]):
        assert OutputStream.before_output is None


def test_it_knows_what_is_being_imported() -> None:
    assert waiting._is_importing("a_module_that_nobody_has")
    assert not waiting._is_importing("os")
