"""Rows of metrics.jsonl and timing.jsonl that were changed, lost or damaged are told."""

import json
import random
import shutil
from pathlib import Path

import pytest

from hmoe import CheckpointError, HMoEError
from hmoe.runs.log_rows import seconds_at
from hmoe.runs.step_metrics import metrics_at
from hmoe.train.records import Records


def write_logs(folder: Path, steps: int = 6, log_every: int = 1) -> Path:
    folder.mkdir()
    records = Records(folder, 0, log_every, print)
    for step in range(1, steps + 1):
        records.tick(10)
        if step % log_every == 0:
            records.write({"step": step, "loss": 2.5 / step})
        if step % 2 == 0:
            records.flush(step)
    records.close()
    return folder


def resume(folder: Path, step: int = 6, log_every: int = 1) -> list[str]:
    told: list[str] = []
    Records(folder, step, log_every, told.append).close()
    return told


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def unseal(folder: Path) -> None:
    """As earlier versions wrote timing.jsonl."""
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    rows = [{key: row[key] for key in ("step", "seconds", "tokens_per_second")} for row in lines]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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


def test_changed_rows_are_told_and_not_exported(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "a")
    assert metrics_at(folder, 6)["loss"] == 2.5 / 6
    edit(folder / "metrics.jsonl", "1.25", "1.35")
    with pytest.raises(CheckpointError, match=r"changed since step 2 was written; move metrics\.jsonl away"):
        metrics_at(folder, 6)
    assert metrics_at(folder, 1)["loss"] == 2.5
    assert "changed since step 2" in resume(folder)[0]
    (folder / "metrics.jsonl").unlink()
    assert metrics_at(folder, 6) == {}


def test_lost_clocks_are_told(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "a")
    lines = (folder / "timing.jsonl").read_text().splitlines(keepends=True)
    (folder / "timing.jsonl").write_text("".join(lines[:-1]) + lines[-1][:-9])
    assert "its row of step 6 is missing; the seconds since step 5" in resume(folder)[0]
    (folder / "timing.jsonl").unlink()
    assert "the seconds since step 0 are not counted" in resume(folder)[0]


@pytest.mark.parametrize("value", ['"1"', "null", "[]", "-1", "NaN", "true", "1e999", "1" + "0" * 5000])
def test_a_clock_of_a_wrong_type_is_one_line(tmp_path: Path, value: str) -> None:
    folder = write_logs(tmp_path / "a", 2)
    row = json.loads((folder / "timing.jsonl").read_text().splitlines()[0])
    edit(folder / "timing.jsonl", f'"seconds": {row["seconds"]}', f'"seconds": {value}')
    for read in (lambda: seconds_at(folder, 2), lambda: resume(folder, 2)):
        with pytest.raises(CheckpointError, match=r"timing\.jsonl:1: .*(at least 0|damaged)"):
            read()


def test_a_bit_flip_in_the_logs_is_told_or_changes_nothing(tmp_path: Path) -> None:
    good, rng = write_logs(tmp_path / "good"), random.Random(0)
    seconds = seconds_at(good, 6)
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
                assert seconds_at(folder, 6) == seconds
                assert (folder / "metrics.jsonl").read_bytes() == (good / "metrics.jsonl").read_bytes()
