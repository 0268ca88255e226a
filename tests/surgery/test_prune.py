"""Fewer experts, judged with the router that will be written; parts that are lost; runs with zero-computation experts."""

import itertools
from typing import Any

import pytest
import torch

from hmoe import ConfigError
from hmoe.model.transformer import Transformer, build
from hmoe.surgery.extras import lost_parts
from hmoe.surgery.measure import inputs_of
from hmoe.surgery.skip import median_shares, with_shares
from hmoe.surgery.upcycle import Choice, upcycle
from tests import oracles
from tests.surgery.test_upcycle import target, tokens, trained

FOUR = {"widths": [12, 12, 12, 12]}
ROUTERS: dict[str, dict[str, Any]] = {
    "top-1 of top-2": {"name": "top_k", "k": 1},
    "bias": {"name": "top_k", "k": 2, "scores": "sigmoid", "bias_rate": 0.1},
    "capacity": {"name": "top_k", "k": 2, "capacity_factor": 0.6},
    "rectified": {"name": "top_k", "k": 1, "capacity_factor": 0.8, "rectify": "fr+ir", "when": "fewer"},
    "groups": {"name": "top_k", "k": 1, "groups": 2, "keep_groups": 1},
    "raw": {"name": "top_k", "k": 2, "renormalize": False},
    "expert choice": {"name": "expert_choice", "capacity_factor": 1.2},
}


def source(router: dict[str, Any], **moe: Any) -> Transformer:
    model = trained(moe={**FOUR, "router": router, **moe})
    for block in model.blocks:
        if block.ffn.router.bias_E is not None:
            block.ffn.router.bias_E.data.copy_(torch.tensor([0.5, -0.5, 1.0, -1.0]))
    return model


@pytest.mark.parametrize("name", list(ROUTERS))
def test_the_subset_is_the_nearest_with_the_router_that_is_written(name: str) -> None:
    """Every subset is written out by hand, as a layer of its own."""
    new, count = ROUTERS[name], 2 if name == "groups" else 3
    old_router = {"name": "top_k", "k": 2} if name == "top-1 of top-2" else new
    model = source(old_router)
    inputs = inputs_of(model, [tokens()])
    chosen, errors = upcycle(model, target({"widths": [12] * count, "router": new}), Choice(), inputs)
    old, x = model.blocks[0].ffn, inputs[0]
    y = old(x)[0]
    candidates = []
    for subset in itertools.combinations(range(4), count):
        part = build(target({"widths": [12] * count, "router": new}), 1, torch.float64).eval().blocks[0].ffn
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


@pytest.mark.parametrize(
    "zero", [{"null": 1, "copy": 1, "constant": 2}, {"null": 2, "true_gates": True}], ids=["MoE++", "AdaMoE"]
)
def test_runs_with_zero_computation_experts_are_pruned(zero: dict[str, Any]) -> None:
    router = {"name": "top_k", "k": 2}
    model = source(router, zero=zero)
    inputs = inputs_of(model, [tokens()])
    _, errors = upcycle(model, target({**FOUR, "router": router, "zero": zero}), Choice(), inputs)
    assert max(errors) < 1e-12
    pruned, errors = upcycle(model, target({"widths": [12, 12, 12], "router": router, "zero": zero}), Choice(), inputs)
    assert 0 < max(errors) < 1
    old, new = model.blocks[0].ffn, pruned.blocks[0].ffn
    assert torch.equal(new.router.weight[3:], old.router.weight[4:])
    if new.zero.value is not None:
        assert torch.equal(new.zero.value, old.zero.value)
        assert torch.equal(new.zero.mix, old.zero.mix)
    without, errors = upcycle(model, target({**FOUR, "router": router}), Choice(), inputs)
    assert lost_parts(model, without.config)[0].startswith(
        f"{sum(map(int, zero.values())) - ('true_gates' in zero)} zero-computation"
    )
    assert min(errors) > 0.01
    with pytest.raises(ConfigError, match=r"moe\.zero = .*: the source has .*; must be that, or be left out"):
        upcycle(model, target({**FOUR, "router": router, "zero": {"null": 3}}), Choice(), inputs)
    with pytest.raises(ConfigError, match="zero: a new router would"):
        upcycle(source(router), target({**FOUR, "router": router, "zero": zero}), Choice(), inputs)


def test_skipping_compares_and_skips_only_experts_that_compute() -> None:
    model = source({"name": "top_k", "k": 3}, zero={"null": 1, "copy": 1})
    text = torch.randint(0, 29, (1, 201))
    inputs = inputs_of(model, [text])
    shares = median_shares(model, inputs)
    with torch.no_grad():
        routing = with_shares(model, shares)(text)[1][0]
    expected: list[set[int]] = []
    ratios = []
    for x in inputs[0]:
        values = oracles.probabilities(model.blocks[0].ffn.router.weight.detach() @ x)  # type: ignore[union-attr, operator]
        chosen = oracles.chosen(model.blocks[0].ffn.router.weight.detach() @ x, 3)  # type: ignore[union-attr, operator]
        computing = [i for i in chosen if i < 4]
        if len(computing) > 1:
            ratios.append(float(min(values[computing]) / max(values[computing])))
        expected.append({i for i in chosen if i >= 4 or values[i] / max(values[computing]) >= shares[0] * (1 - 1e-12)})
    assert shares[0] == pytest.approx(sorted(ratios)[(len(ratios) - 1) // 2])
    chosen_T: list[set[int]] = [set() for _ in expected]
    for token, expert in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True):
        chosen_T[token].add(expert)
    assert chosen_T == expected
    assert 0 < sum(map(len, expected)) < 3 * 201


def test_parts_that_the_new_model_lacks_are_named_and_counted() -> None:
    router = {"name": "top_k", "k": 2, "bias_rate": 0.1}
    beside = {"shared": 8, "hyper": {"dim": 4, "embedding": 5, "hidden": 6, "layer_embedding": 3}}
    model = source(router, **beside)
    for name, parameter in model.named_parameters():
        if "hyper" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    inputs = inputs_of(model, [tokens()])
    kept, errors = upcycle(model, target({**FOUR, "router": router, **beside}), Choice(), inputs)
    assert lost_parts(model, kept.config) == []
    assert max(errors) < 1e-12
    plain = {"name": "top_k", "k": 2}
    for left_out, title in (("shared", "shared experts of width 8 ("), ("hyper", "HyperExperts (")):
        moe = {**FOUR, "router": router, **{name: value for name, value in beside.items() if name != left_out}}
        made, errors = upcycle(model, target(moe), Choice(), inputs)
        (line,) = lost_parts(model, made.config)
        number = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in made.parameters())
        assert line == f"{title}{number:,} parameters)"
        assert min(errors) > 0.01
    everything = lost_parts(model, target({**FOUR, "router": plain}))
    assert [line.split(" (")[0] for line in everything] == [
        "HyperExperts",
        "shared experts of width 8",
        "the bias that balances the router",
    ]
    for change, message in (
        ({"shared": 9}, r"moe\.shared = 9: the source has 8"),
        ({"hyper": {"dim": 5}}, r"moe\.hyper = .*'dim': 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            upcycle(model, target({**FOUR, "router": router, **beside, **change}), Choice(), inputs)
