"""Shared, zero-computation and HyperExperts: taken over, or named with what they counted."""

from typing import Any

import pytest
import torch

from hmoe import ConfigError
from hmoe.surgery.extras import list_lost_extras
from hmoe.surgery.measure import record_ffn_inputs
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from tests.surgery.helpers import FOUR, source, target, tokens


@pytest.mark.parametrize(
    "zero", [{"null": 1, "copy": 1, "constant": 2}, {"null": 2, "true_gates": True}], ids=["MoE++", "AdaMoE"]
)
def test_runs_with_zero_computation_experts_are_pruned(zero: dict[str, Any]) -> None:
    router = {"name": "top_k", "k": 2}
    model = source(router, zero=zero)
    inputs = record_ffn_inputs(model, [tokens()])
    _, errors = upcycle_model(model, target({**FOUR, "router": router, "zero": zero}), UnitChoice(), inputs)
    assert max(errors) < 1e-12
    pruned, errors = upcycle_model(
        model, target({"widths": [12, 12, 12], "router": router, "zero": zero}), UnitChoice(), inputs
    )
    assert 0 < max(errors) < 1
    old, new = model.blocks[0].ffn, pruned.blocks[0].ffn
    assert torch.equal(new.router.weight[3:], old.router.weight[4:])
    if new.zero.value is not None:
        assert torch.equal(new.zero.value, old.zero.value)
        assert torch.equal(new.zero.mix, old.zero.mix)
    without, errors = upcycle_model(model, target({**FOUR, "router": router}), UnitChoice(), inputs)
    assert list_lost_extras(model, without.config)[0].startswith(
        f"{sum(map(int, zero.values())) - ('true_gates' in zero)} zero-computation"
    )
    assert min(errors) > 0.01
    with pytest.raises(ConfigError, match=r"moe\.zero = .*: the source has .*; must be that, or be left out"):
        upcycle_model(model, target({**FOUR, "router": router, "zero": {"null": 3}}), UnitChoice(), inputs)
    with pytest.raises(ConfigError, match="zero: a new router would"):
        upcycle_model(source(router), target({**FOUR, "router": router, "zero": zero}), UnitChoice(), inputs)


def test_parts_that_the_new_model_lacks_are_named_and_counted() -> None:
    router = {"name": "top_k", "k": 2, "bias_rate": 0.1}
    extras = {"shared": 8, "hyper": {"dim": 4, "embedding": 5, "hidden": 6, "layer_embedding": 3}}
    model = source(router, **extras)
    for name, parameter in model.named_parameters():
        if "hyper" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    inputs = record_ffn_inputs(model, [tokens()])
    kept, errors = upcycle_model(model, target({**FOUR, "router": router, **extras}), UnitChoice(), inputs)
    assert list_lost_extras(model, kept.config) == []
    assert max(errors) < 1e-12
    plain = {"name": "top_k", "k": 2}
    for left_out, title in (("shared", "shared experts of width 8 ("), ("hyper", "HyperExperts (")):
        moe = {
            **FOUR,
            "router": router,
            **{name: value for name, value in extras.items() if name != left_out},
        }
        smaller, errors = upcycle_model(model, target(moe), UnitChoice(), inputs)
        (line,) = list_lost_extras(model, smaller.config)
        count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters())
        assert line == f"{title}{count:,} parameters)"
        assert min(errors) > 0.01
    everything = list_lost_extras(model, target({**FOUR, "router": plain}))
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
            upcycle_model(model, target({**FOUR, "router": router, **extras, **change}), UnitChoice(), inputs)
