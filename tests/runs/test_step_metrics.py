"""What a run's logs say of a step is told only if they are those that were written."""

from pathlib import Path

import pytest

from hmoe import CheckpointError
from hmoe.runs.step_metrics import read_step_metrics
from tests.runs.helpers import edit, write_logs


def test_changed_rows_are_not_told_of_a_model(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "a")
    assert read_step_metrics(folder, 6)["loss"] == 2.5 / 6
    edit(folder / "metrics.jsonl", "1.25", "1.35")
    with pytest.raises(CheckpointError, match=r"changed since step 2 was written; move metrics\.jsonl away"):
        read_step_metrics(folder, 6)
    assert read_step_metrics(folder, 1)["loss"] == 2.5
    (folder / "metrics.jsonl").unlink()
    assert read_step_metrics(folder, 6) == {}


def test_the_newest_validation_stays_and_no_other_value_does(tmp_path: Path) -> None:
    rows = [
        '{"step": 1, "validation_loss": 3.0, "sample": "x"}',
        '{"step": 2, "loss": 1.0}',
        '{"step": 3, "validation_loss": 2.0}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert read_step_metrics(tmp_path, 2) == {"step": 2, "loss": 1.0, "validation_loss": 3.0}
    assert read_step_metrics(tmp_path, None) == {"step": 3, "validation_loss": 2.0}
    assert read_step_metrics(tmp_path, 0) == {}
