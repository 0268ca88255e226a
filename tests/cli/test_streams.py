"""Standard streams that are closed, full or left by their reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmoe.cli.streams import OutputStream


def test_streams_that_are_closed_or_full(tmp_path: Path) -> None:
    """Files get no number of a closed stream; a full output is told and counts."""

    def shell(words: str) -> int:
        return subprocess.run(
            ["bash", "-c", f"{sys.executable} -m hmoe {words}"], cwd=tmp_path, check=False
        ).returncode

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
