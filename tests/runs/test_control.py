"""The uniform control: as wide as was measured, and at the same FLOPs."""

from pathlib import Path

import pytest

from hmoe.config.counts import estimate_flops_per_token
from hmoe.errors import ConfigError
from hmoe.runs.control import explain_control, make_uniform_control
from tests.runs.test_comparison import write_run

ZEROS = 'model.moe.zero={"null": 1, copy: 1}'


@pytest.mark.parametrize("overrides", [[], [ZEROS]])
def test_the_control_costs_what_the_run_cost(overrides: list[str], tmp_path: Path) -> None:
    """Also where some experts have no hidden units, of which a token takes its share."""
    control, summary = make_uniform_control(write_run(tmp_path / "run", "tiny", 2.0, *overrides, width=201.0))
    moe = control.model.moe
    assert moe is not None
    assert len(set(moe.expert_widths)) == 1
    per_token = estimate_flops_per_token(control.model, control.data.sequence_length)
    assert per_token == pytest.approx(summary.flops / summary.tokens, rel=0.01)


def test_the_control_is_the_presets(tmp_path: Path) -> None:
    """tiny-control is the control of tiny, which activated 233 units."""
    from hmoe.config.recipes import read_recipe

    run = write_run(tmp_path / "run", "tiny", 2.0, width=233.2)
    control, summary = make_uniform_control(run)
    assert control.model == read_recipe("tiny-control")[1].model
    assert "8 equal experts of 117 hidden units." in explain_control(summary, control)
    assert control.data == summary.config.data


def test_dense_and_equal_models_have_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a dense model has no uniform control"):
        make_uniform_control(write_run(tmp_path / "dense", "tiny-dense", 2.0, width=0))
    with pytest.raises(ConfigError, match="its experts are equal already, all 128 units wide"):
        make_uniform_control(write_run(tmp_path / "equal", "tiny-equal", 2.0))


def test_the_control_ends_where_the_run_ended(tmp_path: Path) -> None:
    by_steps, summary = make_uniform_control(write_run(tmp_path / "a", "tiny", 2.0, steps=40))
    train = by_steps.train
    assert (train.steps, train.tokens, train.seconds) == (None, None, None)
    assert train.flops == pytest.approx(summary.flops * (1 - 0.5 / 40), rel=1e-9)
    by_flops, _ = make_uniform_control(write_run(tmp_path / "b", "tiny", 2.0, "train.flops=5e10", steps=40))
    assert by_flops.train.flops == 5e10  # less than it spent, since it ended with the step that reached it
    begun, summary = make_uniform_control(
        write_run(tmp_path / "c", "tiny", 2.0, "train.flops=5e20", steps=40)
    )
    assert begun.train.flops == pytest.approx(summary.flops * (1 - 0.5 / 40), rel=1e-9)


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "tiny", 2.0)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 8", "steps: 80"))
    control, summary = make_uniform_control(run)
    assert "The run is not finished: 10% of its budget." in explain_control(summary, control)
