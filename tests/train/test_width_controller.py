"""A target width: the controller on a simulated router that drifts, in a short run, and resumed bit by bit."""

import json
import math
from pathlib import Path

import pytest

import hmoe
from hmoe.checkpoint.manifest import read_newest_state
from hmoe.specs.model import MoESpec
from hmoe.train.width_controller import GAIN, MOST_FACTOR, STATE, WidthController
from tests import oracles
from tests.train.helpers import digests, run

WIDTHS = (40, 80, 120, 160)
TARGET = "model.moe.target_width=30"
COST = "model.moe.width_cost=0.1"


def spec(**fields: object) -> MoESpec:
    return MoESpec(widths=WIDTHS, parameter_penalty=0.1, **fields)  # type: ignore[arg-type]


def test_a_planted_drift_is_held_within_two_percent() -> None:
    """A router whose width follows log c with a lag of 10 steps, and which is pushed away by a tenth."""

    def simulate(controller: WidthController | None) -> list[float]:
        width, widths = 200.0, []
        for step in range(1000):
            coefficient = 0.1 if controller is None else controller.coefficient
            drift = 20 * min(1.0, step / 600)
            width += 0.1 * (200 + drift - 30 * math.log(coefficient / 0.1) - width)
            widths.append(width)
            if controller is not None:
                controller.update(width)
        return widths

    assert simulate(None)[-1] / 200 > 1.09
    held = simulate(WidthController(spec(target_width=200.0)))
    assert max(abs(width / 200 - 1) for width in held) < 0.02
    assert abs(held[-1] / 200 - 1) < 1e-3


def test_the_coefficients_are_those_of_the_loop_and_stay_in_range() -> None:
    controller = WidthController(spec(target_width=200.0), gain=0.5)
    widths = [150.0, 300.0, 260.0, 200.0, *[280.0] * 60]
    expected = oracles.width_coefficients(widths, 200.0, 0.1, 0.5, MOST_FACTOR)
    for width, coefficient in zip(widths, expected, strict=True):
        assert controller.coefficient == pytest.approx(coefficient, rel=1e-12)
        controller.update(width)
    assert controller.coefficient == 0.1 * MOST_FACTOR
    controller.update(199.0)  # nothing was wound up beyond the range
    assert controller.coefficient < 0.1 * MOST_FACTOR


@pytest.mark.parametrize(("fields", "name"), [({}, "parameter_penalty"), ({"width_cost": 0.5}, "width_cost")])
def test_it_moves_the_cost_of_width_or_else_the_penalty(fields: dict[str, float], name: str) -> None:
    controller = WidthController(spec(target_width=200.0, **fields))
    assert controller.moved == {name: 0.5 if fields else 0.1}


def test_a_short_run_moves_towards_its_target(tmp_path: Path) -> None:
    wide = [
        "train.steps=30",
        "model.layers=1",
        "optim.warmup_steps=0",
        "optim.lr=0.01",
        "train.eval_every=0",
        "train.save_every=30",
    ]
    plain = run(tmp_path / "plain", *wide)
    held = run(tmp_path / "held", *wide, "model.moe.target_width=24", COST)
    assert "width_cost_coefficient" not in plain[0]
    coefficients = [row["width_cost_coefficient"] for row in held]
    assert coefficients[0] == 0.1
    growth = GAIN * (held[0]["mean_activated_width"] / 24 - 1)
    assert coefficients[1] == pytest.approx(0.1 * math.exp(growth), rel=1e-12)
    last = [sum(row["mean_activated_width"] for row in rows[-10:]) / 10 for rows in (plain, held)]
    assert last[1] - 24 < 0.6 * (last[0] - 24)
    assert held[5]["loss_total"] == pytest.approx(
        held[5]["loss"] + 0.1 * held[5]["parameter_penalty"] + coefficients[5] * held[5]["width_cost"],
        rel=1e-6,
    )


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    run(tmp_path / "one", TARGET)
    run(tmp_path / "two", TARGET, "train.steps=3")
    state = read_newest_state(tmp_path / "two")
    assert state is not None
    assert state[STATE] not in (0.1, None)
    run(tmp_path / "two", TARGET)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_without_a_target_a_checkpoint_and_its_log_know_nothing_of_it(tmp_path: Path) -> None:
    rows = run(tmp_path / "r", "train.steps=2")
    state = read_newest_state(tmp_path / "r")
    assert "target_width" not in json.dumps(state)
    assert STATE not in state  # type: ignore[operator]
    assert not [key for key in rows[0] if key.endswith("_coefficient")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_width": 100}, r"target_width = 100: the router can activate 120 to 280 .* nearest is 120"),
        ({"target_width": 281}, "nearest is 280"),
        ({"target_width": 401, "router": hmoe.TopP(0.6)}, "can activate 40 to 400 .* nearest is 400"),
        ({"target_width": 30, "router": hmoe.TopP(0.6)}, "nearest is 40"),
        ({"target_width": 200, "parameter_penalty": 0.0}, "both are 0; nearest is width_cost = 0.1"),
        (
            {"target_width": 200, "router": hmoe.ExpertChoice(2.0)},
            "target_width has no effect with experts that",
        ),
        ({"target_width": 8, "widths": (4, 4, 4)}, "no effect where every token activates 8 hidden units"),
    ],
)
def test_a_target_out_of_reach_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(hmoe.ConfigError, match=message):
        MoESpec(**{"widths": WIDTHS, "parameter_penalty": 0.1, **fields})  # type: ignore[arg-type]
    assert spec(target_width=120).target_width == 120.0
    assert spec(target_width=40, router=hmoe.TopP(0.6)).target_width == 40
