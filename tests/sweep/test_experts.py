"""Words on which experts a sweep chose: planted changes are told, nulls are not, and idle experts are."""

import dataclasses

from hmoe.sweep.experts import describe_experts
from hmoe.sweep.rows import SweepRow
from tests.sweep.helpers import CONTROL, UNEQUAL, make_plan, make_row

PLAN = make_plan(groups=[UNEQUAL, CONTROL], seeds=[0, 1, 2, 3])


def make_shares(change: float, idle: float = 0.0) -> list[SweepRow]:
    """Return rows of which each took so much more of narrow experts at the end."""
    rows = []
    for seed in PLAN.seeds:
        begin = 0.5 + 0.05 * seed
        end = begin + change + (0.01 if seed % 2 else -0.01)
        rows.append(
            make_row(f"unequal-{seed}", narrow_share_begin=begin, narrow_share_end=end, idle_share_end=idle)
        )
        rows.append(make_row(f"control-{seed}", idle_share_end=0.0))
    return rows


def test_a_planted_change_is_told_and_a_null_is_not() -> None:
    (line,) = describe_experts(PLAN, make_shares(0.1))
    assert line.startswith("unequal: experts narrower than the mean took 67.5% (")
    assert "57.5% in the first tenth of the steps, 50.0% if all were chosen alike" in line
    assert "; change +10.0 points (+" in line
    assert line.endswith("), more than at first")
    (line,) = describe_experts(PLAN, make_shares(-0.1))
    assert line.endswith("), fewer than at first")
    (line,) = describe_experts(PLAN, make_shares(0.0))
    assert line.endswith("), no change shown")
    (line,) = describe_experts(PLAN, make_shares(0.1)[:2])
    assert line.endswith("; change +9.0 points, one run: no interval")
    same = [
        dataclasses.replace(row, narrow_share_begin=0.75, narrow_share_end=1.0) for row in make_shares(0.0)
    ]
    line, _ = describe_experts(PLAN, same)
    assert line.endswith("; change +25.0 points, which does not vary: no interval")


def test_an_interval_of_shares_stays_within_all_and_none() -> None:
    rows = [
        dataclasses.replace(row, narrow_share_end=1.0 if row.seed else 0.4)
        for row in make_shares(0.0)
        if row.group == "unequal"
    ]
    (line,) = describe_experts(PLAN, rows)
    assert "85.0% (" in line
    assert "to 100.0%)" in line


def test_idle_experts_are_told_from_a_tenth_on() -> None:
    *_, line = describe_experts(PLAN, make_shares(0.0, idle=0.75))
    assert line == "unequal: 75% of its experts idle at the end, with less than a tenth of a uniform share"
    assert len(describe_experts(PLAN, make_shares(0.0, idle=0.05))) == 1
