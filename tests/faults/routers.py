"""Routers of all kinds on many small layers: what must hold of every choice, gate, output, gradient and loss."""

import contextlib
import math
import random
import warnings
from collections.abc import Iterator

import torch

import hmoe
from tests import oracles
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.router_draws import (
    Draw,
    Gates,
    compute_gates,
    compute_output,
    draw_layer,
    list_gates,
    weigh,
)
from tests.faults.router_properties import PROPERTIES

DRAWS = 100
CLOSE = 1e-6  # of gates and probabilities
SLOW_ROWS = 4  # tokens of a draw whose outputs are computed by the slow equations


def run_routers(case: Case) -> int:
    """Try 100 layers: all of them in what holds always, each in two properties that cost a pass of their own."""
    draw = case.draw()
    warnings.simplefilter("ignore")  # of routers whose gates are constants
    for number in range(DRAWS):
        given = draw_layer(draw)
        with telling(f"draw {number}: {given.told}"):
            y_TD, routing = check_choices(given)
            check_outputs(given, y_TD, routing, draw)
            check_losses(given, routing)
            check_gradients(given, y_TD, routing)
            for prove in sorted(draw.sample(PROPERTIES, 2), key=PROPERTIES.index):
                prove(given, y_TD.detach(), routing, draw)
    return DRAWS


@contextlib.contextmanager
def telling(words: str) -> Iterator[None]:
    """Add to an error with what it came."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}"[:250] + f"; {words}") from error


def check_choices(given: Draw) -> tuple[torch.Tensor, hmoe.Routing]:
    """Route, and compare choices, gates and probabilities with the oracles."""
    y_TD, routing = given.moe(given.x)
    num_tokens, num_experts = routing.logits_TE.shape
    gates = list_gates(routing)
    place = routing.expert_N * (num_tokens + 1) + routing.token_N
    check((place.diff() > 0).all(), "pairs are not in the order of experts and tokens")
    counts = torch.bincount(routing.expert_N, minlength=num_experts)
    check(
        counts.equal(routing.num_tokens_E),
        f"num_tokens_E is {routing.num_tokens_E.tolist()}, pairs {counts.tolist()}",
    )
    logits_TE = routing.logits_TE.detach().double()
    exact_TE = given.x.double() @ given.moe.router.weight.detach().double().T
    check(logits_TE.equal(exact_TE), "logits are not the exact sums")
    check_probabilities(given, routing, logits_TE)
    expected = compute_gates(given, logits_TE, routing.probs_TE.detach().double())
    for token, have in enumerate(gates):
        want = expected[token]
        if given.kind == "top_p":
            check_top_p(given, have, logits_TE[token], token)
            # Rounding may decide whether a sum reaches p; the gates are then those of another number of experts.
            want = want if have.keys() == want.keys() else weigh(given, logits_TE[token], list(have))
        check(have.keys() == want.keys(), f"token {token} goes to {sorted(have)}, must go to {sorted(want)}")
        far = max((abs(have[e] - want[e]) for e in have), default=0.0)
        check(far <= CLOSE * max(1.0, *want.values(), 1.0), f"token {token}: gates {have}, must be {want}")
        check_counts(given, have, token)
    return y_TD, routing


def check_probabilities(given: Draw, routing: hmoe.Routing, logits_TE: torch.Tensor) -> None:
    if given.spec.score_function == "sigmoid":
        scores_TE = torch.sigmoid(logits_TE)
        expected_TE = scores_TE / scores_TE.sum(1, keepdim=True)
    else:
        rows = [oracles.probabilities(row) for row in logits_TE]
        expected_TE = torch.stack(rows) if rows else logits_TE
    check(
        (routing.probs_TE - expected_TE).abs().max() <= CLOSE if len(logits_TE) else True,
        "other probabilities",
    )


def check_top_p(given: Draw, have: dict[int, float], logits_E: torch.Tensor, token: int) -> None:
    """Check that a token's experts are the fewest that reach p, up to the rounding of a sum."""
    probs, p = oracles.probabilities(logits_E).tolist(), given.spec.p
    order = oracles.chosen(logits_E, k=len(probs))[: len(have)]
    check(set(order) == set(have), f"token {token}: {sorted(have)} are not the best, which are {order}")
    before = sum(probs[e] for e in order[:-1])
    check(before <= p + CLOSE, f"token {token}: {len(have)} experts for p = {p}, without the last {before}")
    check(
        p == 1 or before + probs[order[-1]] >= p - CLOSE,
        f"token {token}: {len(have)} experts do not reach {p}",
    )


def check_counts(given: Draw, have: dict[int, float], token: int) -> None:
    """Check how many experts a token has, and what its gates add up to."""
    spec, total = given.spec, len(given.moe.routed_widths)
    check(all(math.isfinite(g) and g >= 0 for g in have.values()), f"token {token}: gates {have}")
    if given.kind in ("expert_choice", "capacity"):
        check(len(have) <= total, f"token {token} has {len(have)} experts")
    elif given.kind == "top_p":
        check(1 <= len(have) <= total, f"token {token} has {len(have)} experts")
        check(spec.p < 1 or len(have) == total, f"token {token}: {len(have)} experts with p = 1")
        check(spec.p > 1e-9 or len(have) == 1, f"token {token}: {len(have)} experts with p near 0")
    else:
        check(len(have) == spec.k, f"token {token} has {len(have)} experts, k = {spec.k}")
    if spec.gates_sum_to_one and have and not given.moe.router.true_gates:
        check(abs(sum(have.values()) - 1) <= CLOSE, f"token {token}: gates sum to {sum(have.values())}")


def check_outputs(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing, draw: random.Random) -> None:
    """Compare the outputs of some tokens with the equations, by the gates that the layer gave."""
    check(y_TD.shape == given.x.shape and y_TD.dtype == given.x.dtype, f"output {y_TD.shape} {y_TD.dtype}")
    check(y_TD.isfinite().all(), "an output is not finite")
    gates: Gates = list_gates(routing)
    for token in draw.sample(range(len(gates)), min(SLOW_ROWS, len(gates))):
        expected, size = compute_output(given, token, gates[token])
        far = (y_TD[token].double() - expected).abs().max().item()
        check(
            far <= given.tolerance * size, f"token {token}: output is {far} from the equations', size {size}"
        )


def check_losses(given: Draw, routing: hmoe.Routing) -> None:
    """Compare the losses of small batches with the oracles; without tokens they are 0."""
    widths = list(given.moe.routed_widths)
    losses = [hmoe.load_balance(routing), hmoe.parameter_penalty(routing, widths), hmoe.router_entropy(routing),
              hmoe.router_z(routing)]  # fmt: skip
    check(all(loss.isfinite() for loss in losses), f"losses {losses}")
    num_tokens = len(routing.probs_TE)
    if not num_tokens:
        check(all(loss == 0 for loss in losses), f"losses without a token: {losses}")
    if len(set(widths)) == 1:
        check(
            abs(losses[0] - losses[1]) <= CLOSE * max(1, losses[0].item()), "equal widths: two other losses"
        )
    if not 0 < num_tokens * len(widths) <= 60 or given.spec.score_function == "sigmoid":
        return
    gates = [list(have) for have in list_gates(routing)]
    if given.kind == "capacity":  # asked, before anything was dropped
        gates = [oracles.chosen(row, k=given.spec.k) for row in routing.logits_TE.detach().double()]
    logits_TE = routing.logits_TE.detach().double()
    probs_TE = torch.stack([oracles.probabilities(row) for row in logits_TE])
    mean = sum(widths) / sum(1 for width in widths if width)
    expected = [oracles.load_balance(gates, probs_TE), oracles.parameter_penalty(gates, probs_TE, widths, mean),
                oracles.router_entropy(probs_TE), oracles.router_z(logits_TE)]  # fmt: skip
    for loss, want in zip(losses, expected, strict=True):
        check(abs(loss - want) <= 1e-5 * max(1, want.item()), f"loss {loss.item()}, must be {want.item()}")


def check_gradients(given: Draw, y_TD: torch.Tensor, routing: hmoe.Routing) -> None:
    """Go backwards: gradients are finite, and zeros, not None, for experts without a token."""
    moe = given.moe
    widths = list(moe.routed_widths)
    loss = (
        y_TD.float().square().sum() + hmoe.router_entropy(routing) + hmoe.parameter_penalty(routing, widths)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    for name, weight in moe.named_parameters():
        if weight.requires_grad:
            check(weight.grad is not None and weight.grad.isfinite().all(), f"gradient of {name}")
    for expert in range(len(moe.widths)):
        if routing.num_tokens_E[expert] == 0:
            zeros = all((grad == 0).all() for grad in moe.expert_grad(expert))
            check(zeros, f"expert {expert} has no token and a gradient")
    moe.zero_grad()


TESTS = (
    FaultTest(
        "R16",
        "any router, width, type and number of experts and tokens; ties, p near 0 and 1, no token, NaN and 1e4 logits",
        "choices, gates, outputs, losses and gradients are those of the papers' equations; what is not finite is told",
        "layers",
        run_routers,
        cases=200,
    ),
)
