"""Shares of narrow experts and of idle ones from logged rows, against slow loops and planted routing."""

import random
from typing import Any

import pytest

from hmoe.config.recipes import read_recipe
from hmoe.runs.expert_shares import list_narrow_experts, measure_expert_shares
from hmoe.specs.model import MoESpec


def read_moe(*words: str) -> MoESpec:
    moe = read_recipe("tiny", words)[1].model.moe
    assert moe is not None
    return moe


def draw_rows(count: int, num_experts: int) -> list[dict[str, Any]]:
    generator = random.Random(3)
    rows: list[dict[str, Any]] = []
    for step in range(count):
        layers = []
        for _ in range(2):
            weights = [generator.random() ** 6 for _ in range(num_experts)]
            layers.append([weight / sum(weights) for weight in weights])
        rows.append({"step": step + 1, "expert_token_share": layers})
    return rows


@pytest.mark.parametrize("count", [1, 7, 10, 25])
def test_shares_are_means_over_the_first_and_the_last_tenth(count: int) -> None:
    moe = read_moe("model.moe.widths={shape: hybrid, total: 1024, experts: 8, multiple: 1}")
    widths = moe.expert_widths
    rows = draw_rows(count, 8)
    # Rows without shares, as of steps that had none due, count for nothing.
    shares = measure_expert_shares(moe, [{"step": 0}, *rows])
    assert shares is not None
    part = max(1, count // 10)
    for own, value in ((rows[:part], shares.narrow_begin), (rows[count - part :], shares.narrow_end)):
        total = 0.0
        for row in own:
            for layer in row["expert_token_share"]:
                for width, share in zip(widths, layer, strict=True):
                    total += share * (width < sum(widths) / len(widths))
        assert value == pytest.approx(total / len(own) / 2, rel=1e-12)
    idle = 0
    for layer in range(2):
        for expert in range(8):
            own = [row["expert_token_share"][layer][expert] for row in rows[count - part :]]
            idle += sum(own) / len(own) < 0.1 / 8
    assert shares.idle_end == idle / 16


def test_equal_experts_have_no_narrow_ones_and_dense_models_no_shares() -> None:
    equal = read_moe(
        "model.moe.widths={shape: equal, total: 1024, experts: 8}", "model.moe.parameter_penalty=0"
    )
    assert list_narrow_experts(equal) == []
    shares = measure_expert_shares(equal, draw_rows(3, 8))
    assert shares is not None
    assert shares.narrow_begin is shares.narrow_end is None
    assert measure_expert_shares(equal, [{"step": 1}]) is None
    hybrid = read_moe("model.moe.widths={shape: hybrid, total: 1024, experts: 8, multiple: 1}")
    assert 0 < len(list_narrow_experts(hybrid)) < 8
