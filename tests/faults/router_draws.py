"""Draws MoE layers and tokens of all kinds, and what each token's gates and output must be by slow equations."""

import math
import random
import warnings
from dataclasses import dataclass
from typing import Any

import torch

import hmoe
from tests import oracles

KINDS = ("top_k", "top_p", "expert_choice", "capacity", "groups", "sigmoid")
THRESHOLDS = (1e-300, 1e-9, 0.01, 0.1, 0.3, 0.5, 0.6, 0.9, 0.999999, 1.0)
Gates = list[dict[int, float]]  # of each token: expert -> gate


@dataclass(frozen=True)
class Draw:
    """A layer and its input.

    Logits are sums of sixteenths, exact in float32 in every order, so that ties are ties wherever a token lies.

    Attributes:
        kind: one of KINDS.
        moe: the layer.
        x: of shape (T, D).
        told: everything that was drawn, for a reader who wants it again.
    """

    kind: str
    moe: hmoe.MoE
    x: torch.Tensor
    told: str

    @property
    def spec(self) -> Any:
        return self.moe.router.spec

    @property
    def tolerance(self) -> float:
        """Of outputs, relative to what the experts give."""
        return 1e-5 if self.x.dtype == torch.float32 else 4e-2


def draw_layer(draw: random.Random) -> Draw:
    """Return a layer of a kind, width, number of experts and type that are drawn, and tokens for it."""
    kind = draw.choice(KINDS)
    num_experts = draw.choice([1, 2, 3, 4, 5, 8, draw.randint(1, 64)])
    widths = [draw.randint(1, 12) for _ in range(num_experts)] if draw.random() < 0.8 else [5] * num_experts
    if draw.random() < 0.1:
        widths[draw.randrange(num_experts)] = draw.randint(100, 400)
    zero, options = draw_extras(draw, kind)
    total = num_experts + (zero.count if zero else 0)
    spec = draw_router(draw, kind, total, zero)
    tokens = (
        draw.choice([0, 1, 2, 3, 5, 8, 13, draw.randint(0, 40)])
        if draw.random() < 0.97
        else draw.randint(0, 512)
    )
    dim, dtype = draw.randint(2, 12), draw.choice([torch.float32, torch.bfloat16])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant gates are told of
        moe = hmoe.MoE(dim, widths, spec, zero=zero, dtype=dtype, **options)
    seed = draw.randrange(10**9)
    generator = torch.Generator().manual_seed(seed)
    scale = draw.choice([0.0, 0.25, 1.0] if kind in ("groups", "sigmoid") else [0.0, 0.25, 1.0, 4.0])
    fill_weights(moe, generator, scale)
    x = torch.randint(-4, 5, (tokens, dim), generator=generator) / 4
    if tokens > 2 and draw.random() < 0.3:
        x[-1] = x[0]
    moe.backend = draw.choice([None, None, "reference", "loop"])
    told = (
        f"{kind} {spec} widths={widths} T={tokens} D={dim} {dtype} {zero} {options} scale={scale} seed={seed}"
    )
    return Draw(kind, moe, x.to(dtype), told)


def draw_extras(draw: random.Random, kind: str) -> tuple[hmoe.ZeroExperts | None, dict[str, Any]]:
    """Return zero-computation experts or None, and a shared expert, HyperExperts, none or both."""
    zero, options = None, dict[str, Any]()
    if kind in ("top_k", "top_p") and draw.random() < 0.4:
        null, copy, constant = (draw.randint(0, 2) for _ in range(3))
        true_gates = not copy and not constant and draw.random() < 0.5
        zero = hmoe.ZeroExperts(null=max(null, int(not copy and not constant)), copy=copy, constant=constant,
                                true_gates=true_gates)  # fmt: skip
    if draw.random() < 0.3:
        options["shared"] = draw.randint(1, 9)
    if draw.random() < 0.3:
        options["hyper"] = hmoe.Hyper(dim=draw.randint(1, 3), embedding=4, hidden=3, layer_embedding=2)
    return zero, options


def draw_router(draw: random.Random, kind: str, total: int, zero: hmoe.ZeroExperts | None) -> Any:
    """Return a router for so many experts."""
    raw = draw.random() < 0.3 and not (zero and zero.true_gates)
    if kind == "top_p":
        return hmoe.TopP(draw.choice(THRESHOLDS), renormalize=not raw)
    if kind == "expert_choice":
        return hmoe.ExpertChoice(
            min(draw.choice([0.3, 1.0, 2.0]), total), capacity_by=draw.choice(["equal", "compute"])
        )
    k = draw.choice([1, total, draw.randint(1, total)])
    if kind == "top_k":
        return hmoe.TopK(k, renormalize=not raw, straight_through=not raw and draw.random() < 0.3,
                         gate_scale=draw.choice([1.0, 2.5]))  # fmt: skip
    if kind == "capacity":
        return hmoe.TopK(k, capacity_factor=draw.choice([0.1, 0.5, 1.0, 1.25, 4.0]), renormalize=not raw,
                         min_capacity=draw.choice([0, 0, 1, 4]), capacity_by=draw.choice(["equal", "width"]),
                         priority=draw.choice(["position", "score"]))  # fmt: skip
    if kind == "sigmoid":
        return hmoe.TopK(k, scores="sigmoid", renormalize=not raw)
    groups = draw.choice([n for n in range(1, total + 1) if total % n == 0])
    keep = draw.randint(1, groups)
    return hmoe.TopK(draw.randint(1, keep * total // groups), scores="sigmoid", groups=groups, keep_groups=keep,
                     gate_scale=draw.choice([1.0, 2.5]))  # fmt: skip


def fill_weights(moe: hmoe.MoE, generator: torch.Generator, scale: float) -> None:
    """Give the router weights whose sums are exact, and HyperExperts an output that is not near 0."""
    with torch.no_grad():
        moe.reset_parameters(generator)
        weight = torch.randint(-4, 5, moe.router.weight.shape, generator=generator) / 4 * scale
        moe.router.weight.copy_(weight)
        if moe.hyper_network is not None:
            for head in moe.hyper_network.heads.values():
                head.weight.normal_(std=0.5, generator=generator)  # type: ignore[operator]


def list_gates(routing: hmoe.Routing) -> Gates:
    """Return the gates of each token as the layer gives them."""
    gates: Gates = [{} for _ in range(len(routing.probs_TE))]
    for token, expert, gate in zip(*(part.tolist() for part in (routing.token_N, routing.expert_N, routing.gate_N)),
                                   strict=True):  # fmt: skip
        assert expert not in gates[token], f"token {token} goes to expert {expert} twice"
        gates[token][expert] = gate
    return gates


def compute_gates(given: Draw, logits_TE: torch.Tensor, probs_TE: torch.Tensor) -> Gates:
    """Return the gates of each token by the oracles' equations; `probs_TE` decides where rounding would."""
    spec, widths = given.spec, list(given.moe.routed_widths)
    if given.kind == "expert_choice":
        limits = count_taken(spec, widths, len(logits_TE))
        taken = oracles.expert_choice(probs_TE, limits)
        return [
            {e: probs_TE[t, e].item() for e, row in enumerate(taken) if t in row}
            for t in range(len(probs_TE))
        ]
    if given.kind == "groups":
        bias = [0.0] * len(widths)
        return [
            {e: gate.item() for e, gate in
             oracles.grouped_sigmoid(row, bias, spec.k, spec.groups, spec.keep_groups, spec.gate_scale).items()}
            for row in logits_TE
        ]  # fmt: skip
    limit = {"p": spec.p} if given.kind == "top_p" else {"k": spec.k}
    choices = [oracles.chosen(row, **limit) for row in logits_TE]
    kept = [[True] * len(row) for row in choices]
    if given.kind == "capacity":
        limits = oracles.capacities(
            spec.capacity_factor, spec.k, len(choices), widths, spec.capacity_by, spec.min_capacity
        )
        kept = oracles.with_capacity(probs_TE, choices, limits, spec.priority == "score")
    return [
        weigh(given, row, [e for e, ok in zip(choice, some, strict=True) if ok])
        for row, choice, some in zip(logits_TE, choices, kept, strict=True)
    ]


def weigh(given: Draw, logits_E: torch.Tensor, taken: list[int]) -> dict[int, float]:
    """Return the gates of one token's experts."""
    spec, computing = given.spec, len(given.moe.widths)
    if spec.score_function == "sigmoid":
        scores = [1 / (1 + math.exp(-z)) for z in logits_E.tolist()]
    else:
        scores = oracles.probabilities(logits_E).tolist()
    counted = [e for e in taken if e < computing or not given.moe.router.true_gates]
    if (
        getattr(spec, "straight_through", False) and spec.k == 1
    ):  # null experts, which give 0 whatever the gate, too
        return dict.fromkeys(taken, spec.gate_scale)
    total = (sum(scores[e] for e in counted) if spec.renormalize else 1.0) or 1.0
    return {e: scores[e] / total * getattr(spec, "gate_scale", 1.0) for e in taken}


def count_taken(spec: Any, widths: list[int], tokens: int) -> list[int]:
    """Return how many tokens each expert takes that chooses them."""
    mean = sum(widths) / len(widths)
    shares = [1.0 if spec.capacity_by == "equal" else mean / width for width in widths]
    return [
        min(tokens, math.ceil(spec.capacity_factor * tokens / len(widths) * share - 1e-9)) for share in shares
    ]


@torch.no_grad()
def compute_output(given: Draw, token: int, gates: dict[int, float]) -> tuple[torch.Tensor, float]:
    """Return a token's output in float64, and how large its parts are."""
    moe, x_D = given.moe, given.x[token].double()
    parts = [gate * compute_expert(moe, expert, x_D) for expert, gate in gates.items()]
    if moe.shared is not None:
        weights = (moe.shared.w_gate.double(), moe.shared.w_up.double(), moe.shared.w_down.double().T)
        parts.append(oracles.expert(x_D, weights))
    if moe.hyper is not None and moe.hyper_network is not None:
        named = {**dict(moe.hyper.named_parameters()), **dict(moe.hyper_network.named_parameters())}
        values = {name.removeprefix("heads."): value.double() for name, value in named.items()}
        values["layer_embedding"] = values.pop("layer_embedding.weight")[0]
        unselected = [e for e in range(len(moe.routed_widths)) if e not in gates]
        parts.append(oracles.hyper_expert(x_D, unselected, values))
    size = max([1.0, *(part.abs().max().item() for part in parts)])
    return sum(parts, torch.zeros_like(x_D)), size


def compute_expert(moe: hmoe.MoE, expert: int, x_D: torch.Tensor) -> torch.Tensor:
    """Return what an expert gives, also one without hidden units."""
    first = len(moe.widths)
    if expert < first:
        return oracles.expert(x_D, tuple(w.double() for w in moe.expert(expert)))  # type: ignore[arg-type]
    assert moe.zero is not None
    zero, index = moe.zero.spec, expert - first
    if index < zero.null:
        return oracles.zero_expert(x_D, "null")
    if index < zero.null + zero.copy:
        return oracles.zero_expert(x_D, "copy")
    assert moe.zero.value is not None and moe.zero.mix is not None  # noqa: PT018
    number = index - zero.null - zero.copy
    return oracles.zero_expert(
        x_D, "constant", moe.zero.value[number].double(), moe.zero.mix[number].double()
    )
