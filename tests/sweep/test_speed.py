"""Seconds of runs side by side: planted ratios are found, runs that were not side by side are no pairs."""

import dataclasses
import math
from typing import Any

from hmoe.sweep.rows import SweepRow
from hmoe.sweep.speed import compare_seconds, describe_speeds, measure_speeds
from tests.sweep.helpers import CONTROL, UNEQUAL, make_plan, make_row
from tests.sweep.test_answer import clock, make_isoflop


def test_seconds_are_compared_between_runs_side_by_side_alone() -> None:
    _, rows = make_isoflop(0.0)
    rows = clock(rows, 1.25)
    cost = compare_seconds(rows, "equal-topk")["unequal-topk"]
    assert abs(cost.seconds_per_flop - 1.25) < 1e-5
    assert cost.relative_error is not None
    assert cost.relative_error < 1e-5
    changes: list[dict[str, Any]] = [{"machine": "another"}, {"commit": "def"}, {"seconds": None}]
    for change in changes:
        others = [dataclasses.replace(row, **change) if row.family == "equal-topk" else row for row in rows]
        assert compare_seconds(others, "equal-topk").keys() <= {"equal-topk"}
    one = [row for row in rows if row.size == "x1" and row.seed == 0]
    assert compare_seconds(one, "equal-topk").keys() == {"equal-topk"}
    wild = [
        dataclasses.replace(
            row, seconds=(row.seconds or 0) * (50 if row.seed and row.family[0] == "u" else 1)
        )
        for row in rows
    ]  # half of the runs were held up
    assert compare_seconds(wild, "equal-topk").keys() == {"equal-topk"}


def make_timed(ratios: dict[int, float]) -> list[SweepRow]:
    """Return rows of a baseline and of runs that took so many times its seconds, by seed; each seed took longer."""
    rows = []
    for seed, ratio in ratios.items():
        seconds = 100.0 * (1 + seed)
        rows.append(make_row(f"control-{seed}", seconds=seconds, expert_flops_share=0.5))
        rows.append(make_row(f"unequal-{seed}", seconds=seconds * ratio, expert_flops_share=0.4))
    return rows


def test_speeds_of_groups_are_trimmed_means_with_words_as_strong_as_their_intervals() -> None:
    plan = make_plan(groups=[UNEQUAL, CONTROL], seeds=list(range(6)), baseline="control")
    slower = {seed: 1.25 + 0.001 * seed for seed in range(5)} | {5: 40.0}  # one was held up
    unequal, control = measure_speeds(plan, make_timed(slower))
    assert (unequal.group, unequal.num_pairs) == ("unequal", 6)
    assert abs(unequal.expert_flops_share - 0.4) < 1e-12
    assert unequal.speed is not None
    assert unequal.speed_low is not None
    assert unequal.speed_high is not None
    assert abs(unequal.speed * math.prod((1.251, 1.252, 1.253, 1.254)) ** 0.25 - 1) < 1e-12
    assert unequal.speed_low < unequal.speed < unequal.speed_high < 0.81
    assert (control.speed, control.seconds) == (None, 350.0)
    (line,) = describe_speeds([unequal, control], "control")
    assert line.startswith("unequal: 0.7984 (0.79")
    assert line.endswith("times the tokens per second of control, slower")
    null = {seed: 1.02 if seed % 2 else 1 / 1.02 for seed in range(6)}
    (line,) = describe_speeds(measure_speeds(plan, make_timed(null)), "control")
    assert line.endswith("no difference shown")
    few = measure_speeds(plan, make_timed({0: 2.0}))
    assert describe_speeds(few, "control") == []
    assert [speed.num_pairs for speed in few] == [1, 1]


def test_several_speeds_hold_together() -> None:
    equal = {**UNEQUAL, "name": "equal", "overrides": [*UNEQUAL["overrides"], "optim.lr=0.5"]}
    plan = make_plan(groups=[equal, UNEQUAL, CONTROL], seeds=list(range(6)), baseline="control")
    ratios = {seed: 1.02**seed for seed in range(6)}
    alone = measure_speeds(plan, make_timed(ratios))[0]
    others = [make_row(f"equal-{seed}", seconds=100.0 * (1 + seed) * ratio) for seed, ratio in ratios.items()]
    equal_speed, both, _ = measure_speeds(plan, [*make_timed(ratios), *others])
    assert equal_speed.speed == both.speed == alone.speed
    assert alone.speed_low is not None
    assert both.speed_low is not None
    assert both.speed_low < alone.speed_low  # 97.5% each instead of 95%
