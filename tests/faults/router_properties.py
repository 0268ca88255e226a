"""What must hold of a MoE layer when its tokens, experts, logits or thresholds are others."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator

import torch

import hmoe
from tests.faults.campaign import check
from tests.faults.router_draws import Draw, compute_expert, list_gates


@torch.no_grad()
def prove_token_order(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """Tokens in another order: the same outputs in that order; a token alone: the same as in the batch."""
    if given.kind in ("expert_choice", "capacity") or not len(given.x):
        return
    order = torch.tensor(draw.sample(range(len(given.x)), len(given.x)))
    y2_TD, routing2 = given.moe(given.x[order])
    gates, gates2 = list_gates(routing), list_gates(routing2)
    check(
        [gates[i].keys() for i in order.tolist()] == [have.keys() for have in gates2],
        "permuted tokens: other experts",
    )
    check_close(given, y2_TD, y_TD[order], "permuted tokens")
    first = draw.randrange(len(given.x))
    last = draw.randint(first + 1, len(given.x))
    y3_TD, routing3 = given.moe(given.x[first:last])
    alone = [have.keys() for have in list_gates(routing3)]
    check(alone == [have.keys() for have in gates[first:last]], "a part of the batch alone: other experts")
    check_close(given, y3_TD, y_TD[first:last], f"tokens {first} to {last} alone")


@torch.no_grad()
def prove_same_again(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """The same call gives the same bits, another backend the same numbers."""
    again_TD, routing2 = given.moe(given.x)
    check(again_TD.equal(y_TD) and routing2.gate_N.equal(routing.gate_N), "the same call again: other bits")
    given.moe.backend = draw.choice(["reference", "loop", "exact"])
    other_TD, _ = given.moe(given.x)
    check_close(given, other_TD, y_TD, f"backend {given.moe.backend}")


@torch.no_grad()
def prove_expert_order(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """Experts in another order with their weights: the same outputs, where no tie is broken by the order."""
    moe = given.moe
    ties = any(len(set(row)) < len(row) for row in routing.logits_TE.tolist())
    if (
        given.kind in ("groups", "capacity", "expert_choice")
        or moe.zero is not None
        or moe.hyper is not None
        or ties
    ):
        return
    order = draw.sample(range(len(moe.widths)), len(moe.widths))
    other = hmoe.MoE(moe.dim, [moe.widths[i] for i in order], given.spec, dtype=given.x.dtype)
    other.router.weight.copy_(moe.router.weight[order])
    for place, expert in enumerate(order):
        for target, source in zip(other.expert(place), moe.expert(expert), strict=True):
            target.copy_(source)
    other.shared = moe.shared
    check_close(given, other(given.x)[0], y_TD, f"experts in the order {order}")


@torch.no_grad()
def prove_bad_logits(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """A NaN or an infinity is an error with the token's number; unchecked it spoils that token alone."""
    if not len(given.x):
        return
    token, value = draw.randrange(len(given.x)), draw.choice([math.nan, math.inf, -math.inf])
    x_TD = given.x.clone()
    x_TD[token, draw.randrange(given.moe.dim)] = value
    try:
        given.moe(x_TD)
    except hmoe.NonFiniteError as error:
        check(f"first: token {token})" in str(error) and "\n" not in str(error), f"says {error}")
    else:
        raise AssertionError(f"{value} in token {token} passes")
    given.moe.check_finite = False
    bad_TD, _ = given.moe(x_TD)
    given.moe.check_finite = True
    if given.kind in ("expert_choice", "capacity"):  # which tokens are taken depends on all of them
        return
    check(bad_TD[token].isnan().all(), f"{value} in token {token}: its output has numbers")
    others = [i for i in range(len(x_TD)) if i != token]
    if x_TD.dtype == torch.bfloat16:
        # On a CPU the products of PyTorch 2.13 (64 x 33 times 33 x 2, 64 x 340 times 340 x 2, not 64 x 32 times 32 x 2)
        # give NaN in rows whose own numbers are finite where another row holds NaN.
        return
    check_close(given, bad_TD[others], y_TD[others], f"{value} in token {token}: the others")


def prove_large_logits(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """Logits of about 1e4 give finite gates, outputs, losses and gradients."""
    with torch.no_grad():
        given.moe.router.weight.mul_(16384)
    y_TD, routing = given.moe(given.x)
    losses = [hmoe.router_entropy(routing), hmoe.load_balance(routing), hmoe.router_z(routing)]
    check(all(loss.isfinite() for loss in losses), f"losses {losses}")
    for have in list_gates(routing):
        check(all(math.isfinite(g) and g >= 0 for g in have.values()), f"gates {have}")
    check(y_TD.isfinite().all(), "outputs are not finite")
    (y_TD.float().sum() + sum(losses)).backward()  # type: ignore[no-untyped-call]
    for name, weight in given.moe.named_parameters():
        check(weight.grad is None or weight.grad.isfinite().all(), f"gradient of {name} is not finite")


@torch.no_grad()
def prove_one_expert(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """All tokens to one expert: it is that dense network."""
    moe, expert = (
        hmoe.MoE(given.moe.dim, given.moe.widths, hmoe.TopK(1)),
        draw.randrange(len(given.moe.widths)),
    )
    x_TD = given.x.float().abs() + 0.25
    moe.router.weight.zero_()[expert] = 1.0
    y_TD, routing = moe(x_TD)
    check(routing.num_tokens_E[expert] == len(x_TD) == routing.num_tokens_E.sum(), "tokens went elsewhere")
    for token in range(min(3, len(x_TD))):
        expected = compute_expert(moe, expert, x_TD[token].double())
        far = (y_TD[token] - expected).abs().max()
        check(
            far <= 2e-6 * max(1.0, expected.abs().max().item()),
            f"token {token}: {far} from the dense network",
        )


@torch.no_grad()
def prove_thresholds(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """Top-p with a threshold for each token: each gets what a layer of that p gives it, others are refused."""
    if given.kind != "top_p":
        return
    some = [draw.choice([0.0, 1e-9, 0.3, 0.6, 1.0]) for _ in given.x]
    _, mixed = given.moe(given.x, top_p_T=torch.tensor(some))
    for have, p in zip(list_gates(mixed), some, strict=True):
        check(p > 1e-9 or len(have) == 1, f"p = {p} gives {len(have)} experts")
        check(p < 1 or len(have) == len(given.moe.routed_widths), f"p = 1 gives {len(have)} experts")
    for bad in (
        [*some[1:], 1.5] if some else [1.0],
        [math.nan] * len(some) or [0.5],
        [0.5] * (len(some) + 1),
    ):
        with refused("top_p_T"):
            given.moe(given.x, top_p_T=torch.tensor(bad))


@contextlib.contextmanager
def refused(words: str) -> Iterator[None]:
    try:
        yield
    except hmoe.ConfigError as error:
        check(words in str(error) and "\n" not in str(error) and len(str(error)) < 600, f"says {error}")
    else:
        raise AssertionError(f"{words} is not refused")


def check_close(given: Draw, have: torch.Tensor, want: torch.Tensor, words: str) -> None:
    if have.numel():
        far, size = (have.double() - want.double()).abs().max().item(), max(1.0, want.abs().max().item())
        check(far <= given.tolerance * 4 * size, f"{words}: outputs differ by {far}")


# The last one changes the layer.
Property = Callable[[Draw, torch.Tensor, hmoe.Routing, random.Random], None]
PROPERTIES: list[Property] = [prove_token_order, prove_same_again, prove_expert_order, prove_bad_logits,
                              prove_one_expert, prove_thresholds, prove_large_logits]  # fmt: skip
