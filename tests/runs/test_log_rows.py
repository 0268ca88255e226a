"""The one reader of metrics.jsonl and timing.jsonl."""

import ast
import json
from pathlib import Path

import pytest

import hmoe
from hmoe import CheckpointError
from hmoe.runs.log_rows import read_log_rows, read_logs, read_newest_row, read_training_seconds
from tests.runs.helpers import edit, resume, write_logs


def test_rows_are_read_up_to_a_step_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "a", steps=4, log_every=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    metrics, timing = read_logs(folder)
    assert [row["step"] for _, row in metrics] == [2, 4]
    assert b"".join(line for line, _ in timing) == (folder / "timing.jsonl").read_bytes()
    assert [[row["step"] for _, row in rows] for rows in read_logs(folder, 3)] == [[2], [2]]
    assert read_training_seconds(folder, 3) == timing[0][1]["seconds"]
    assert read_training_seconds(folder, 1) == 0
    assert list(read_log_rows(tmp_path / "none")) == []


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"step": 1}', '{"step": 2.0}', '{"step": true}', "[" * 9999, '{"step": 1']
)
def test_a_damaged_line_is_named_also_after_the_step(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    for last_step in (None, 1):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: damaged line"):
            list(read_log_rows(file, last_step))


def test_the_newest_row_is_that_of_the_last_whole_line_however_wide(tmp_path: Path) -> None:
    assert read_newest_row(tmp_path) == {}
    rows = [{"step": step, "tokens": step, "flops": step, "shares": [0.123456] * 8000} for step in (1, 2)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert read_newest_row(tmp_path) == rows[1]
    (tmp_path / "metrics.jsonl").write_text(lines[0] + lines[1][:-500])
    assert read_newest_row(tmp_path) == rows[0]


def test_nothing_else_in_the_package_names_the_logs() -> None:
    """Their names stand in one module, and only what writes them takes the names from there."""
    source = Path(hmoe.__file__).parent
    naming, importing = set(), set()
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in ("metrics.jsonl", "timing.jsonl"):
                naming.add(str(file.relative_to(source)))
            if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & {
                "METRICS",
                "TIMING",
            }:
                importing.add(str(file.relative_to(source)))
    assert naming == {"runs/log_rows.py"}
    assert importing == {"runs/log_seals.py", "runs/step_metrics.py", "train/records.py"}


@pytest.mark.parametrize("value", ['"1"', "null", "[]", "-1", "NaN", "true", "1e999", "1" + "0" * 5000])
def test_a_clock_of_a_wrong_type_is_one_line(tmp_path: Path, value: str) -> None:
    folder = write_logs(tmp_path / "a", 2)
    row = json.loads((folder / "timing.jsonl").read_text().splitlines()[0])
    edit(folder / "timing.jsonl", f'"seconds": {row["seconds"]}', f'"seconds": {value}')
    for read in (lambda: read_training_seconds(folder, 2), lambda: resume(folder, 2)):
        with pytest.raises(CheckpointError, match=r"timing\.jsonl:1: .*(at least 0|damaged)"):
            read()
