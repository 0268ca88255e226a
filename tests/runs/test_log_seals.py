"""Rows of metrics.jsonl and timing.jsonl that were changed or lost are told."""

import random
import shutil
from pathlib import Path

import pytest

from hmoe import HMoEError
from hmoe.runs.log_rows import read_training_seconds
from hmoe.runs.log_seals import describe_log_change
from tests.runs.helpers import edit, resume, unseal, write_logs


def test_a_change_is_described_and_a_whole_log_is_not(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "a")
    assert describe_log_change(folder, 6) is None
    edit(folder / "metrics.jsonl", "1.25", "1.35")
    assert describe_log_change(folder, 1) is None
    assert "changed since step 2 was written" in (describe_log_change(folder, 6) or "")
    assert "changed since step 2" in resume(folder)[0]


def test_whole_logs_are_resumed_without_a_word(tmp_path: Path) -> None:
    assert resume(write_logs(tmp_path / "a"), 4) == []
    folder = write_logs(tmp_path / "b", log_every=5)
    assert resume(folder, 6, 5) == []
    assert resume(folder, 6, 2) == []  # another train.log_every from now on
    unseal(folder)
    assert resume(folder, 6, 5) == []


@pytest.mark.parametrize("sealed", [True, False])
def test_missing_rows_are_counted(tmp_path: Path, sealed: bool) -> None:
    folder = write_logs(tmp_path / "a")
    if not sealed:
        unseal(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:1] + lines[3:]))
    assert "2 of 6 rows are missing" in (told := resume(folder))[0]
    assert len(told) == 1
    (folder / "metrics.jsonl").unlink()
    assert "6 of 6 rows are missing" in resume(folder)[0]


def test_lost_clocks_are_told(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "a")
    lines = (folder / "timing.jsonl").read_text().splitlines(keepends=True)
    (folder / "timing.jsonl").write_text("".join(lines[:-1]) + lines[-1][:-9])
    assert "its row of step 6 is missing; the seconds since step 5" in resume(folder)[0]
    (folder / "timing.jsonl").unlink()
    assert "the seconds since step 0 are not counted" in resume(folder)[0]


def test_a_bit_flip_in_the_logs_is_told_or_changes_nothing(tmp_path: Path) -> None:
    good, rng = write_logs(tmp_path / "good"), random.Random(0)
    seconds = read_training_seconds(good, 6)
    for name in ("metrics.jsonl", "timing.jsonl"):
        content = (good / name).read_bytes()
        for _ in range(20):
            folder = Path(shutil.copytree(good, tmp_path / "bad", dirs_exist_ok=True))
            place = rng.randrange(len(content))
            flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
            (folder / name).write_bytes(content[:place] + flipped + content[place + 1 :])
            try:
                told = resume(folder)
            except HMoEError as error:
                assert error.exit_code == 4
                continue
            if not told:
                assert read_training_seconds(folder, 6) == seconds
                assert (folder / "metrics.jsonl").read_bytes() == (good / "metrics.jsonl").read_bytes()
