"""Zero-computation experts: outputs and gradients by the oracle, gates, and their part in losses."""

from typing import Any

import pytest
import torch

import hmoe
from tests import oracles
from tests.model.test_moe_parts import DIM, WIDTHS, draw_x_and_grad, make_layer


@pytest.mark.parametrize(
    "zero", [hmoe.ZeroExperts(1, 1, 2), hmoe.ZeroExperts(2), hmoe.ZeroExperts(copy=1)], ids=str
)
@pytest.mark.parametrize("spec", [hmoe.TopK(3), hmoe.TopP(0.7), hmoe.TopK(2, capacity_factor=0.5)], ids=str)
def test_zero_computation_experts_are_the_oracle(zero: hmoe.ZeroExperts, spec: Any) -> None:
    moe = make_layer(spec, zero=zero)
    x, grad = draw_x_and_grad()
    y, routing = moe(x)
    assert len(routing.num_tokens_E) == 4 + zero.count
    (y * grad).sum().backward()
    copy = {name: p.detach().clone().requires_grad_() for name, p in moe.named_parameters()}
    x2 = x.detach().clone().requires_grad_()
    kinds = ["null"] * zero.null + ["copy"] * zero.copy + ["constant"] * zero.constant
    experts = [
        [torch.split(copy[part], WIDTHS)[i] for part in ("w_gate", "w_up", "w_down")] for i in range(4)
    ]
    rows = [torch.zeros(DIM, dtype=torch.float64) for _ in range(len(x2))]
    gates = routing.gate_N.detach()
    again = moe.router(x2)
    for token, i, gate, fixed in zip(
        again.token_N.tolist(), again.expert_N.tolist(), again.gate_N, gates, strict=True
    ):
        assert gate == fixed
        if i < 4:
            w_gate, w_up, w_down = experts[i]
            out = oracles.expert(x2[token], (w_gate, w_up, w_down.T))
        else:
            index = i - 4 - zero.null - zero.copy
            own = (
                (copy["zero.value"][index], copy["zero.mix"][index])
                if kinds[i - 4] == "constant"
                else (None, None)
            )
            out = oracles.zero_expert(x2[token], kinds[i - 4], *own)
        rows[token] = rows[token] + gate * out
    y2 = torch.stack(rows)
    torch.testing.assert_close(y, y2, rtol=1e-11, atol=1e-11)
    router = moe.router.weight.grad.clone() if moe.router.weight.grad is not None else None
    moe.router.weight.grad = None
    (y2 * grad).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(router, moe.router.weight.grad, rtol=1e-10, atol=1e-11)
    for name in ("w_gate", "w_up", "w_down", *(["zero.value", "zero.mix"] if zero.constant else [])):
        expected = copy[name].grad if copy[name].grad is not None else torch.zeros_like(copy[name])
        torch.testing.assert_close(moe.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-11, msg=name)


def test_a_choice_of_null_experts_alone_that_means_nothing_gives_no_numbers() -> None:
    """Top-1 of a token whose logits are not finite may name a null expert, whose gate is NaN."""
    moe = hmoe.MoE(7, [20], hmoe.TopK(1), zero=hmoe.ZeroExperts(null=1, copy=0, constant=0))
    x_TD = torch.randn(40, 7)
    x_TD[::2, 3] = torch.inf
    moe.check_finite = False
    y_TD, routing = moe(x_TD)
    assert {
        int(expert) for token, expert in zip(routing.token_N, routing.expert_N, strict=True) if not token % 2
    }
    assert y_TD[::2].isnan().all()
    assert y_TD[1::2].isfinite().all()


def test_gates_over_experts_that_compute() -> None:
    """AdaMoE: what null experts take is given to the others; a token with nothing else gets 0."""
    moe = make_layer(hmoe.TopK(3), zero=hmoe.ZeroExperts(null=3, true_gates=True))
    _, routing = moe(torch.randn(60, DIM, dtype=torch.float64))
    true_N = routing.expert_N < 4
    sums = torch.zeros(60, dtype=torch.float64).index_add(0, routing.token_N[true_N], routing.gate_N[true_N])
    some = torch.bincount(routing.token_N[true_N], minlength=60) > 0
    torch.testing.assert_close(sums, some.double())
    assert 0 < some.sum() < 60


def test_width_0_costs_nothing_in_the_parameter_penalty_and_can_weigh_less_in_the_balance() -> None:
    moe = make_layer(hmoe.TopK(2), zero=hmoe.ZeroExperts(1, 1, balance=0.75))
    _, routing = moe(torch.randn(30, DIM, dtype=torch.float64))
    share, prob = routing.num_tokens_E.double() / 30, routing.probs_TE.mean(0)
    widths = torch.tensor(moe.routed_widths, dtype=torch.float64)
    penalty = 6 * (share * widths / widths[:4].mean() * prob).sum()
    torch.testing.assert_close(hmoe.parameter_penalty(routing, moe.routed_widths), penalty)
    weights = torch.tensor([1, 1, 1, 1, 0.75, 0.75], dtype=torch.float64)
    torch.testing.assert_close(
        hmoe.load_balance(routing, weights.tolist()), 6 * (share * weights * prob).sum()
    )
