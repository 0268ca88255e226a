"""The first words of the page are as strong as the runs and no stronger."""

from pathlib import Path

import pytest

from hmoe.report.headline import measure_shift, write_headline
from hmoe.report.inputs import read_report_inputs
from tests.report.run_example import DENSE, EQUAL, UNEQUAL, write_run


def test_seeds_that_agree_are_a_verdict_with_its_interval(example: Path) -> None:
    headline = write_headline(read_report_inputs([str(example)]))
    # Differences are -0.10, -0.11, -0.12: mean -0.11, t(2) x 0.01 / sqrt(3) = 0.0248, wider for no other comparison.
    assert headline.title == "unequal is better than equal by 0.1100 ± 0.0248 bits per byte."
    assert "3 pairs of seeds at equal FLOPs" in headline.lead
    assert any("dense and equal are alike" in point for point in headline.points)


def test_seeds_that_disagree_show_nothing(tmp_path: Path) -> None:
    for seed, bits in enumerate((1.9, 2.2, 2.0)):
        write_run(tmp_path / f"unequal-{seed}", UNEQUAL, seed, bits)
        write_run(tmp_path / f"equal-{seed}", EQUAL, seed, 2.0 + seed / 50)
    headline = write_headline(read_report_inputs([str(tmp_path)]))
    assert headline.title == "These runs show no difference between unequal and equal."
    assert "\u2212" in headline.lead
    assert "+0." in headline.lead


def test_single_seeds_tell_nothing_of_chance(tmp_path: Path) -> None:
    write_run(tmp_path / "a", UNEQUAL, bits=1.5)
    write_run(tmp_path / "b", DENSE, bits=2.0)
    headline = write_headline(read_report_inputs([str(tmp_path)]))
    assert headline.title == "One run each: whether a or b is better, nobody can say."
    assert "0.5000 bits per byte below b" in headline.lead


def test_one_run_says_what_was_trained_and_where_work_went(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", UNEQUAL, bits=1.5, shift=0.2)
    inputs = read_report_inputs([str(run)])
    headline = write_headline(inputs)
    assert headline.title == "a reaches 1.5000 bits per byte."
    assert headline.lead.startswith("One run of a model of ")
    assert any(point.startswith("One run: what of it is chance") for point in headline.points)
    shift = measure_shift(inputs.records[0])
    assert shift is not None
    assert (shift.step, shift.uniform, shift.num_layers, shift.num_rising) == (1, 0.5, 2, 2)
    assert (shift.start, shift.end) == (pytest.approx(0.5), pytest.approx(0.7))
    assert "moved to the narrow experts" in headline.points[-1]
    assert "only runs without it can show" in headline.points[-1]


def test_work_may_move_the_other_way_and_equal_experts_have_none_to_move(tmp_path: Path) -> None:
    away = write_run(tmp_path / "away", [*UNEQUAL, "model.moe.parameter_penalty=0"], shift=-0.2)
    equal = write_run(tmp_path / "equal", EQUAL)
    points = write_headline(read_report_inputs([str(away)])).points
    assert "moved away from the narrow experts" in points[-1]
    assert points[-1].endswith("The recipe has no parameter penalty.")
    assert len(write_headline(read_report_inputs([str(equal)])).points) == 1


def test_recipes_at_other_flops_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", UNEQUAL)
    longer = write_run(tmp_path / "b", EQUAL)
    text = (longer / "metrics.jsonl").read_text().replace('"flops": ', '"flops": 1')
    (longer / "metrics.jsonl").write_text(text)
    headline = write_headline(read_report_inputs([str(tmp_path)]))
    assert headline.title == "a and b cannot be compared."
    assert "not at equal FLOPs" in headline.lead
