from pathlib import Path
from typing import Any

import pytest

from hmoe.runs.log_rows import read_training_seconds
from hmoe.train.records import Records


class Board:
    """Stands for TensorBoard's writer, an optional extra."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def row(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 2.5,
        "skipped": None,
        "sample": "text",
        "expert_token_share": [[0.25, 0.75]],
    }


def test_every_number_goes_to_the_board_shares_per_layer_and_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board()
    monkeypatch.setattr("hmoe.train.records._tensorboard", lambda folder, step: board)
    records = Records(tmp_path, 0, 1, print)
    records.write(row(1))
    records.close()
    assert ("loss", 2.5, 1) in board.scalars
    assert ("expert_token_share/layer0/expert1", 0.75, 1) in board.scalars
    assert {"seconds", "tokens_per_second"} <= {name for name, _, _ in board.scalars}
    assert not {"sample", "skipped"} & {name for name, _, _ in board.scalars}
    assert board.closed


def test_logs_are_cut_back_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    records = Records(tmp_path, 0, 1, print)
    for step in (1, 2, 3):
        records.begin()
        records.tick(10)
        records.write(row(step))
    records.close()
    spent = read_training_seconds(tmp_path, 3)
    assert spent > 0
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again = Records(tmp_path, 2, 1, print)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert 0 < again.seconds < spent
    again.write(row(3))
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_the_time_of_a_saved_step_is_always_written(tmp_path: Path) -> None:
    records = Records(tmp_path, 0, 1, print)
    records.tick(10)
    records.flush(5)
    records.flush(5)
    records.close()
    assert (tmp_path / "timing.jsonl").read_text().count('"step": 5') == 1
