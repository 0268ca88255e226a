"""What a page is made of is read whole, or the file that cannot be read is named."""

import json
from pathlib import Path

import pytest

from hmoe.errors import CheckpointError, ConfigError
from hmoe.report.inputs import choose_baseline, read_report_inputs
from hmoe.runs.groups import read_run_groups
from tests.report.run_example import DENSE, EQUAL, UNEQUAL, WIDTHS, write_run


def test_an_inspection_and_its_positions_come_with_the_run(example: Path) -> None:
    inputs = read_report_inputs([str(example)])
    assert inputs.baseline == "equal"
    assert [record.name for record in inputs.records if record.inspection] == ["unequal-0"]
    record = inputs.get_records("unequal")[0]
    assert record.widths == tuple(WIDTHS)
    assert len(record.positions) == 2 * 4 * 3
    assert record.seconds[40] == 10


def test_the_baseline_is_the_largest_of_equal_experts_or_dense_or_the_first(tmp_path: Path) -> None:
    for name, recipe in (("a", UNEQUAL), ("b", ["model.moe.widths=[9,9,9,9]"]), ("c", EQUAL), ("d", DENSE)):
        write_run(tmp_path / name, recipe)
    assert choose_baseline(read_run_groups([str(tmp_path)])) == "c"
    assert choose_baseline(read_run_groups([str(tmp_path / "a"), str(tmp_path / "d")])) == "d"
    assert read_report_inputs([str(tmp_path)], str(tmp_path / "b")).baseline == "b"
    with pytest.raises(ConfigError, match="baseline = e: must be a row"):
        read_report_inputs([str(tmp_path)], "e")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"format": 2}), "format = 2: must be 1"),
        (json.dumps({"format": 1, "model": {}, "text": {}, "tables": {"experts": [1]}}), "damaged"),
        ('{"format": 1, "model": {}, "text": {}, "tables": {"layers": [{"ratio": NaN}]}}', "damaged"),
    ],
)
def test_an_inspection_that_cannot_be_read_is_named(tmp_path: Path, content: str, message: str) -> None:
    run = write_run(tmp_path / "a", UNEQUAL)
    (run / "inspect").mkdir()
    (run / "inspect" / "inspection.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"inspection.json: {message}.*hmoe inspect"):
        read_report_inputs([str(run)])
