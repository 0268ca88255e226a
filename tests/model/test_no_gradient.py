"""Where a gradient would be wrong or missing without a word: it is right, or said."""

import re
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hmoe
from hmoe import ConfigError
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.rotary import rotate_heads

WIDTHS = (4, 9, 6)
LOSSES: dict[str, Callable[[hmoe.Routing], torch.Tensor]] = {
    "load_balance": hmoe.load_balance,
    "parameter_penalty": lambda routing: hmoe.parameter_penalty(routing, WIDTHS),
    "router_entropy": hmoe.router_entropy,
    "router_z": hmoe.router_z,
    "own, of gates": lambda routing: routing.gate_N.square().sum(),
    "own, of probabilities": lambda routing: routing.probs_TE.var(),
}


def layer() -> hmoe.MoE:
    return hmoe.MoE(8, WIDTHS, hmoe.TopK(2)).double()


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_of_a_routing_from_reentrant_checkpointing_is_refused(name: str) -> None:
    moe, x = layer(), torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    y, routing = checkpoint(moe, x, use_reentrant=True)
    loss = y.sum() + LOSSES[name](routing)
    with pytest.raises(RuntimeError, match=r"gradient of this Routing was lost: .*; use_reentrant=False"):
        loss.backward()


def test_other_passes_without_gradients_and_other_checkpointing_are_not() -> None:
    moe, x = layer(), torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    gradients = []
    for run in (moe, lambda x: checkpoint(moe, x, use_reentrant=False)):
        moe.zero_grad()
        y, routing = run(x)
        (y.square().mean() + 10 * hmoe.load_balance(routing)).backward()
        assert moe.router.weight.grad is not None
        gradients.append(moe.router.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    moe.zero_grad()  # tensors that leave the checkpoint as its outputs have their gradient
    checkpoint(lambda x: moe(x)[1].probs_TE, x, use_reentrant=True).square().sum().backward()
    moe_again = layer()
    moe_again.load_state_dict(moe.state_dict())
    moe_again(x)[1].probs_TE.square().sum().backward()
    torch.testing.assert_close(moe.router.weight.grad, moe_again.router.weight.grad)
    with torch.no_grad():
        routing = moe(x)[1]
    assert not routing.probs_TE.requires_grad
    assert hmoe.load_balance(routing) > 0
    y, routing = checkpoint(moe, x, use_reentrant=True)  # nobody differentiates the routing
    y.sum().backward()
    assert hmoe.load_balance(routing) > 0


def test_second_derivatives_are_right_or_refused_in_one_line() -> None:
    moe, x = layer(), torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: moe(x)[0], x)  # float64: the definition
    table = (torch.randn(1, 1, 3, 2, dtype=torch.float64), torch.randn(1, 1, 3, 2, dtype=torch.float64))
    heads = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda heads: rotate_heads(heads, table).square(), heads)
    moe = moe.float()
    weight = torch.randn(5, 8, requires_grad=True)
    for name, run in {
        "expert_ffn: computed by backend = 'reference' only": lambda x: moe(x)[0].square().sum(),
        "hmoe.model.cross_entropy: not computed": lambda x: cross_entropy(
            x, weight, torch.tensor([0, 1, 4]), 2
        ),
    }.items():
        low = x.detach().float().requires_grad_()
        for wanted in (low, weight if "cross" in name else moe.w_up):
            (first,) = torch.autograd.grad(run(low), wanted, create_graph=True)
            with pytest.raises(RuntimeError, match=f"second derivatives of {name}") as error:
                (first.square().sum() + low.square().sum()).backward()  # never without the first term
            assert "\n" not in str(error.value)


def test_second_derivatives_of_cross_entropy_are_no_zeros_to_whom_asks_for_them_alone() -> None:
    x, weight, factor = (
        torch.randn(3, 8),
        torch.randn(5, 8, requires_grad=True),
        torch.tensor(2.0, requires_grad=True),
    )
    asked: list[Callable[[], object]] = [
        lambda: torch.autograd.functional.hessian(loss, x),
        lambda: torch.autograd.functional.hvp(loss, x, torch.ones_like(x)),
        lambda: torch.autograd.grad(first.sum(), weight, allow_unused=True),
        lambda: torch.autograd.grad(first.sum(), factor, allow_unused=True),
        lambda: (first.square().sum() + weight.sum()).backward(inputs=[weight]),
    ]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return factor * cross_entropy(x, weight, torch.tensor([0, -100, 4]), 2)

    x.requires_grad_()
    for ask in asked:
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives of hmoe"):
            ask()


@pytest.mark.parametrize(
    ("spec", "experts", "told"),
    [
        (
            hmoe.TopK(1),
            3,
            r"router top-1 of 3: .* router\.straight_through = true or router\.renormalize = false",
        ),
        (hmoe.TopK(1, capacity_factor=1.0), 2, "router top-1, capacity 1 of 2"),
        (hmoe.TopP(0.25), 4, r"router\.p above 0\.25 or router\.renormalize = false"),
        (hmoe.TopP(0.9), 4, None),
        (hmoe.TopP(0.1, renormalize=False), 4, None),
        (hmoe.TopK(1), 1, None),
        (hmoe.TopK(1, renormalize=False), 3, None),
        (hmoe.TopK(1, straight_through=True), 3, None),
        (hmoe.TopK(1, capacity_factor=1.0, rectify="ir"), 3, None),
        (hmoe.TopK(2), 3, None),
        (hmoe.ExpertChoice(), 3, None),
    ],
    ids=str,
)
def test_a_router_without_gradient_from_the_text_is_announced(
    spec: hmoe.TopK | hmoe.TopP | hmoe.ExpertChoice,
    experts: int,
    told: str | None,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """And what is announced is so: the gradient of the router's weights is 0 there, and is not elsewhere."""
    moe = hmoe.MoE(8, [5] * experts, spec).double()
    assert len(recwarn) == (told is not None)
    if told is not None:
        assert re.search(told, str(recwarn[0].message))
    torch.nn.init.normal_(moe.router.weight)
    moe(torch.randn(20, 8, dtype=torch.float64))[0].square().sum().backward()
    assert moe.router.weight.grad is not None
    assert (moe.router.weight.grad.abs().max() < 1e-9) == (told is not None or experts == 1)


def test_ignored_targets_are_as_pytorchs() -> None:
    x, w = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (40, 11))
    target = torch.randint(0, 11, (40,))
    for ignored, index in (
        (slice(25, None), -100),
        (slice(None, None, 3), -100),
        (slice(3, 9), 7),
        (slice(None), -100),
    ):
        some = target.masked_fill(target == index, 2)
        some[ignored] = index
        grads = []
        for run in (lambda n=index, t=some: cross_entropy(x, w, t, 8, n),
                    lambda n=index, t=some: torch.nn.functional.cross_entropy(x @ w.T, t, ignore_index=n)):  # fmt: skip
            loss = run()
            grads.append((loss, *torch.autograd.grad(loss, (x, w))))
        for ours, expected in zip(*grads, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12, equal_nan=expected.dim() == 0)
    for wrong, message in (
        ({"target_T": torch.tensor([1, 2, -1])}, "target -1 of token 2, must be from 0 to 10, or -100"),
        ({"target_T": torch.tensor([1, 11, 2])}, "target 11 of token 1, must be from 0 to 10"),
        ({"target_T": torch.tensor([1, 2])}, r"target is \(2,\); must be \(tokens, dim\)"),
        (
            {"target_T": torch.tensor([1, 2, 3], dtype=torch.int32)},
            "target is torch.int32, must be torch.int64",
        ),
        ({"chunk": 0}, "chunk = 0, must be at least 1"),
    ):
        arguments = {"x_TD": x[:3], "w_VD": w, "target_T": torch.tensor([1, 2, 3]), "chunk": 4, **wrong}
        with pytest.raises(ConfigError, match=message):
            cross_entropy(**arguments)  # type: ignore[arg-type]
