"""Dense -> experts and experts -> other experts: the function that is kept, and how near it is kept."""

import math
from typing import Any

import pytest
import torch

from hmoe import ConfigError
from hmoe.model.transformer import build_transformer
from hmoe.surgery.measure import measure_unit_importance, record_ffn_inputs
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from tests.surgery.helpers import DENSE, target, tokens, trained


@pytest.mark.parametrize(
    "router", [{"name": "top_k", "k": 1}, {"name": "top_k", "k": 2}, {"name": "top_p", "p": 0.7}]
)
@pytest.mark.parametrize("widths", [[24, 24, 24], [24, 30, 50]], ids=str)
@pytest.mark.parametrize("kind", ["windows", "random"])
def test_copies_are_the_dense_model(router: dict[str, Any], widths: list[int], kind: str) -> None:
    """Also where an expert is wider than the layer: what is more is silent until trained."""
    dense = trained(**DENSE)
    model, errors = upcycle_model(dense, target({"widths": widths, "router": router}), UnitChoice(kind), None)
    assert all(math.isnan(error) for error in errors)
    torch.testing.assert_close(model(tokens())[0], dense(tokens())[0], rtol=1e-10, atol=1e-10)
    model.train()(tokens())[0].square().sum().backward()
    for i, width in enumerate(widths):
        if width > 24:
            assert model.blocks[0].ffn.expert_grad(i)[2][:, 24:].abs().sum() > 0


def test_a_shared_expert_and_hyper_experts_change_nothing_at_first() -> None:
    dense = trained(**DENSE)
    moe = {"widths": [24, 24], "shared": 6, "hyper": {"dim": 3, "init": "zero"}}
    model, _ = upcycle_model(dense, target(moe), UnitChoice("windows"), None)
    torch.testing.assert_close(model(tokens())[0], dense(tokens())[0], rtol=1e-10, atol=1e-10)


def test_every_second_layer() -> None:
    dense = trained(**DENSE)
    model, _ = upcycle_model(
        dense, target({"widths": [24, 24], "dense_layers": [0]}, ffn=24), UnitChoice("windows"), None
    )
    torch.testing.assert_close(model(tokens())[0], dense(tokens())[0], rtol=1e-10, atol=1e-10)


def test_units_by_importance_are_nearer_than_others_and_the_error_is_stated() -> None:
    dense = trained(**DENSE)
    inputs = record_ffn_inputs(dense, [tokens()])
    errors = {}
    for kind in ("importance", "windows", "random"):
        model, layer_errors = upcycle_model(dense, target({"widths": [12, 12, 16]}), UnitChoice(kind), inputs)
        errors[kind] = sum(layer_errors) / len(layer_errors)
        again = record_ffn_inputs(dense, [tokens()])
        y, z = dense.blocks[0].ffn(again[0]), model.blocks[0].ffn(again[0])[0]
        assert layer_errors[0] == pytest.approx(((z - y).norm() / y.norm()).item(), rel=1e-9)
    assert errors["importance"] < 0.5 * min(errors["windows"], errors["random"])


def test_windows_go_around_and_cover_the_layer() -> None:
    dense = trained(**DENSE)
    model, _ = upcycle_model(dense, target({"widths": [10, 10, 10]}), UnitChoice("windows"), None)
    first = dense.blocks[0].ffn.w_gate
    for i, start in enumerate((0, 10, 20)):
        rows = (start + torch.arange(10)) % 24
        assert torch.equal(model.blocks[0].ffn.expert(i)[0], first[rows])


def test_a_narrower_expert_is_scaled_to_be_nearest() -> None:
    dense = trained(**DENSE)
    for block in dense.blocks:
        block.ffn.w_down.data.abs_()  # units that agree, so that some of them say less than all
        block.ffn.w_gate.data.copy_(block.ffn.w_up.data)
    inputs = record_ffn_inputs(dense, [tokens()])
    model, (error, _) = upcycle_model(
        dense, target({"widths": [9], "router": {"name": "top_k", "k": 1}}), UnitChoice("windows"), inputs
    )
    ffn = model.blocks[0].ffn
    whole = dense.blocks[0].ffn
    hidden = torch.nn.functional.silu(inputs[0] @ whole.w_gate[:9].T) * (inputs[0] @ whole.w_up[:9].T)
    part, all_of_it = hidden @ whole.w_down[:9], whole(inputs[0])
    expected = (part * all_of_it).sum() / (part * part).sum()
    assert abs(expected - 1) > 0.1
    torch.testing.assert_close(ffn.w_down.data, (whole.w_down[:9] * expected).data)
    for factor in (0.95, 1.05):
        ffn.w_down.data.mul_(factor)
        worse = (ffn(inputs[0])[0] - dense.blocks[0].ffn(inputs[0])).norm() / dense.blocks[0].ffn(
            inputs[0]
        ).norm()
        assert worse > error
        ffn.w_down.data.div_(factor)


def test_equal_experts_become_unequal_and_the_busiest_get_the_widest() -> None:
    source = trained(moe={"widths": [12, 12, 12, 12], "router": {"name": "top_k", "k": 2}})
    inputs = record_ffn_inputs(source, [tokens()])
    same, errors = upcycle_model(source, target({"widths": [12, 12, 12, 12]}), UnitChoice(), inputs)
    assert max(errors) < 1e-12
    torch.testing.assert_close(same(tokens())[0], source(tokens())[0], rtol=1e-9, atol=1e-9)
    mass = [float(part.sum()) for part in measure_unit_importance(source.blocks[0].ffn, inputs[0])]
    model, errors = upcycle_model(source, target({"widths": [4, 8, 12, 16]}), UnitChoice(), inputs)
    order = sorted(range(4), key=lambda i: mass[i])
    assert torch.equal(model.blocks[0].ffn.router.weight, source.blocks[0].ffn.router.weight[order])
    assert 0 < max(errors) < 0.7


def test_fewer_experts_are_those_whose_layer_is_nearest() -> None:
    source = trained(moe={"widths": [12, 12, 12, 12], "router": {"name": "top_k", "k": 2}})
    inputs = record_ffn_inputs(source, [tokens()])
    model, errors = upcycle_model(source, target({"widths": [12, 12, 12]}), UnitChoice(), inputs)
    ffn, old = model.blocks[0].ffn, source.blocks[0].ffn
    y = old(inputs[0])[0]
    error_without = {}
    for left_out in range(4):
        kept = [i for i in range(4) if i != left_out]
        part = build_transformer(target({"widths": [12, 12, 12]}), 1, torch.float64).blocks[0].ffn
        part.router.weight.data.copy_(old.router.weight[kept])
        for new, i in enumerate(kept):
            for place, value in zip(part.expert(new), old.expert(i), strict=True):
                place.copy_(value)
        error_without[left_out] = ((part(inputs[0])[0] - y).norm() / y.norm()).item()
    assert errors[0] == pytest.approx(min(error_without.values()), rel=1e-9)
    assert len(ffn.widths) == 3


@pytest.mark.parametrize(
    ("source", "moe", "kind", "message"),
    [
        (DENSE, {"widths": [9]}, "importance", "is measured on a text"),
        (DENSE, {"widths": [9, 9], "router": {"name": "top_k", "k": 1, "renormalize": False}}, "windows",
         "; nearest.*renormalize=true$"),
        (DENSE, {"widths": [9, 9], "router": {"name": "top_k", "gate_scale": 2.0}}, "windows",
         "; nearest choice: .*gate_scale=1$"),
        (DENSE, {"widths": [9, 9], "router": {"name": "expert_choice"}}, "windows",
         "; nearest choice: model.moe.router={name: top_k}$"),
        (DENSE, {"widths": [9, 9], "zero": {"null": 1}}, "windows", "zero: a new router would"),
        ({}, {"widths": [9, 9, 9, 9]}, "windows", "4 experts from 3"),
        ({}, {"widths": [9, 9]}, "windows", "which ones to keep is measured on a text"),
        ({}, {"widths": [9, 9, 9], "dense_layers": [0]}, "windows", "cannot become dense"),
        (DENSE, {"widths": [9, 9]}, "best", "must be one of importance, windows, random"),
    ],
)  # fmt: skip
def test_what_cannot_be_upcycled(
    source: dict[str, Any], moe: dict[str, Any], kind: str, message: str
) -> None:
    moe = {"router": {"name": "top_k", "k": 1}, **moe}
    changes = {"ffn": 24} if moe.get("dense_layers") else {}
    with pytest.raises(ConfigError, match=message):
        upcycle_model(trained(**source), target(moe, **changes), UnitChoice(kind), None)
