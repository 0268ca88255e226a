"""What the tests of the documents share."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def command_path() -> Iterator[str]:
    """PATH with a `hmoe` and a `python` that start in no time, with a short corpus: see command_server.py."""
    with tempfile.TemporaryDirectory(prefix="hmoe-") as folder:
        words = [sys.executable, "-m", "tests.repo.command_server", folder]
        server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield os.pathsep.join([folder, str(Path(sys.executable).parent), os.environ["PATH"]])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # what a failed test left, too
        server.communicate()
