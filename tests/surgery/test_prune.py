"""Fewer experts: those whose layer is nearest, judged with the router that will be written."""

import itertools
from typing import Any

import pytest
import torch

from hmoe.model.transformer import build_transformer
from hmoe.surgery.measure import record_ffn_inputs
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from tests.surgery.helpers import source, target, tokens

ROUTERS: dict[str, dict[str, Any]] = {
    "top-1 of top-2": {"name": "top_k", "k": 1},
    "bias": {"name": "top_k", "k": 2, "scores": "sigmoid", "bias_rate": 0.1},
    "capacity": {"name": "top_k", "k": 2, "capacity_factor": 0.6},
    "rectified": {"name": "top_k", "k": 1, "capacity_factor": 0.8, "rectify": "fr+ir", "when": "fewer"},
    "groups": {"name": "top_k", "k": 1, "groups": 2, "keep_groups": 1},
    "raw": {"name": "top_k", "k": 2, "renormalize": False},
    "expert choice": {"name": "expert_choice", "capacity_factor": 1.2},
}


@pytest.mark.parametrize("name", list(ROUTERS))
def test_the_subset_is_the_nearest_with_the_router_that_is_written(name: str) -> None:
    """Every subset is written out by hand, as a layer of its own."""
    new, count = ROUTERS[name], 2 if name == "groups" else 3
    old_router = {"name": "top_k", "k": 2} if name == "top-1 of top-2" else new
    model = source(old_router)
    inputs = record_ffn_inputs(model, [tokens()])
    chosen, errors = upcycle_model(
        model, target({"widths": [12] * count, "router": new}), UnitChoice(), inputs
    )
    old, x = model.blocks[0].ffn, inputs[0]
    y = old(x)[0]
    candidates = []
    for subset in itertools.combinations(range(4), count):
        part = (
            build_transformer(target({"widths": [12] * count, "router": new}), 1, torch.float64)
            .eval()
            .blocks[0]
            .ffn
        )
        part.router.weight.data.copy_(old.router.weight[list(subset)])
        if part.router.bias_E is not None:
            part.router.bias_E.data.copy_(old.router.bias_E[list(subset)])
        for i, expert in enumerate(subset):
            for place, value in zip(part.expert(i), old.expert(expert), strict=True):
                place.copy_(value)
        candidates.append(((part(x)[0] - y).norm() / y.norm()).item())
    nearest = min(candidates)
    assert errors[0] == pytest.approx(nearest, rel=1e-9)
    assert ((chosen.blocks[0].ffn(x)[0] - y).norm() / y.norm()).item() == pytest.approx(nearest, rel=1e-9)
