"""`hmoe bench decode` measures what it says, in tiny shapes; no time is asserted."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line

pytestmark = pytest.mark.usefixtures("small_limits")


def test_decode_says_the_share_of_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command_line(
            [
                "bench",
                "decode",
                "--shape",
                "small",
                "--dtype",
                "float32",
                "--rounds",
                "3",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    (path,) = tmp_path.glob("decode-cpu-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["memory_read_us"] > 0
    assert row["share_of_memory_read_limit"] == pytest.approx(
        row["memory_read_us"] / row["experts us"], rel=1e-6
    )
