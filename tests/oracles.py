"""The papers' equations as slow loops in float64; every kernel, router and loss is compared with these.

Written from the paper's text, one token and one expert at a time, and without using anything of `hmoe`. Plain autograd
through them gives the reference gradients.
"""

from __future__ import annotations

import math

import torch

Expert = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # w_gate (h, D), w_up (h, D), w_down (D, h)


def expert(x_D: torch.Tensor, weights: Expert) -> torch.Tensor:
    """HMoE eq 1-2: W_o (SiLU(W_g x) * (W_p x))."""
    w_gate, w_up, w_down = weights
    gate = w_gate @ x_D
    return w_down @ (gate / (1 + torch.exp(-gate)) * (w_up @ x_D))


def probabilities(logits_E: torch.Tensor) -> torch.Tensor:
    """HMoE eq 7."""
    exp_E = torch.exp(logits_E - logits_E.max())
    return exp_E / exp_E.sum()


def chosen(logits_E: torch.Tensor, k: int | None = None, p: float | None = None) -> list[int]:
    """HMoE eq 8 (k) or eq 9-10 (p): experts in descending probability, lowest index first among equals.

    Sorted by logit, which is the same order without the rounding of the softmax.
    """
    logits, probs = logits_E.tolist(), probabilities(logits_E).tolist()
    order = sorted(range(len(probs)), key=lambda i: (-logits[i], i))
    if k is not None:
        return order[:k]
    assert p is not None
    if p == 1:
        return order
    taken, total = [], 0.0
    for i in order:
        taken.append(i)
        total += probs[i]
        if total >= p:
            break
    return taken


def moe(
    x_TD: torch.Tensor,
    w_router_ED: torch.Tensor,
    experts: list[Expert],
    k: int | None = None,
    p: float | None = None,
    renormalize: bool = True,
) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    """HMoE eq 6-11: (y_TD, experts of each token, probs_TE)."""
    rows, choices, probs = [], [], []
    for x_D in x_TD:
        logits_E = w_router_ED @ x_D
        probs_E = probabilities(logits_E)
        taken = chosen(logits_E, k, p)
        total = sum(probs_E[i] for i in taken) if renormalize else 1.0
        rows.append(sum((probs_E[i] / total * expert(x_D, experts[i]) for i in taken), torch.zeros_like(x_D)))
        choices.append(taken)
        probs.append(probs_E)
    if not rows:
        return x_TD * 1, [], x_TD.new_zeros(0, len(experts))
    return torch.stack(rows), choices, torch.stack(probs)


def load_balance(choices: list[list[int]], probs_TE: torch.Tensor) -> torch.Tensor:
    """HMoE eq 3: N sum_i T_i P_i."""
    tokens, n = probs_TE.shape
    total = probs_TE.new_zeros(())
    for i in range(n):
        share = sum(i in taken for taken in choices) / tokens
        total = total + share * sum(probs_TE[t, i] for t in range(tokens)) / tokens
    return n * total


def parameter_penalty(
    choices: list[list[int]], probs_TE: torch.Tensor, widths: list[int], divisor: float
) -> torch.Tensor:
    """HMoE eq 4: N sum_i M_i P_i, M_i = mean_t 1{i chosen} h_i / divisor."""
    tokens, n = probs_TE.shape
    total = probs_TE.new_zeros(())
    for i in range(n):
        m = sum(widths[i] / divisor for taken in choices if i in taken) / tokens
        total = total + m * sum(probs_TE[t, i] for t in range(tokens)) / tokens
    return n * total


def size_balance(choices: list[list[int]], probs_TE: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """Mean over widths of several experts: n_g sum_i (T_i / T_g) (P_i / P_g), 0 for a width without tokens."""
    totals = []
    for width in sorted({w for w in widths if w and widths.count(w) > 1}):
        group = [i for i, w in enumerate(widths) if w == width]
        loads = [sum(i in taken for taken in choices) for i in group]
        probs = [sum((row[i] for row in probs_TE), probs_TE.new_zeros(())) for i in group]
        total = probs_TE.new_zeros(())
        for load, prob in zip(loads, probs, strict=True):
            if load:
                total = total + load / sum(loads) * prob / sum(probs)
        totals.append(len(group) * total)
    return sum(totals, probs_TE.new_zeros(())) / len(totals)


def expected_width(probs_TE: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """mean_t sum_i p_i h_i / mean(h), the mean over experts that compute."""
    mean = sum(widths) / len([w for w in widths if w])
    total = probs_TE.new_zeros(())
    for row_E in probs_TE:
        for i, width in enumerate(widths):
            total = total + row_E[i] * width / mean
    return total / len(probs_TE)


def batch_balance(
    choices: list[list[list[int]]], probs_TE: list[torch.Tensor], weights: list[float]
) -> torch.Tensor:
    """Mean over micro-batches m of N sum_i T_i w_i P_i, P_i of m, T_i of all micro-batches up to m."""
    n, total = len(weights), probs_TE[0].new_zeros(())
    for m, probs in enumerate(probs_TE):
        taken = [experts for part in choices[: m + 1] for experts in part]
        for i in range(n):
            share = sum(i in experts for experts in taken) / len(taken)
            total = total + n * share * weights[i] * sum(row[i] for row in probs) / len(probs)
    return total / len(probs_TE)


def router_entropy(probs_TE: torch.Tensor) -> torch.Tensor:
    """HMoE eq 5 with the minus sign it needs: -N mean_t sum_i P log P."""
    tokens, n = probs_TE.shape
    total = probs_TE.new_zeros(())
    for t in range(tokens):
        for i in range(n):
            if probs_TE[t, i] > 0:
                total = total - probs_TE[t, i] * torch.log(probs_TE[t, i])
    return n * total / tokens


def router_z(logits_TE: torch.Tensor) -> torch.Tensor:
    """ST-MoE: mean_t (log sum_i exp z_i)^2."""
    return sum((torch.log(torch.exp(row).sum()) ** 2 for row in logits_TE), torch.zeros(())) / len(logits_TE)


def cross_entropy(logits_TV: torch.Tensor, targets: list[int]) -> torch.Tensor:
    """Mean of -log softmax at the target."""
    total = torch.zeros((), dtype=logits_TV.dtype)
    for row, target in zip(logits_TV, targets, strict=True):
        total = total - torch.log(probabilities(row)[target])
    return total / len(targets)


def rms_norm(x_D: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean x^2 + eps) * weight."""
    return x_D / torch.sqrt((x_D**2).sum() / len(x_D) + eps) * weight_D


def rotary(x_C: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """Pairs (i, i + C/2) as complex numbers times exp(i position theta^(-2i/C))."""
    half = len(x_C) // 2
    out = []
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x_C))
        out.append((x_C[i] * math.cos(angle) - x_C[i + half] * math.sin(angle), i))
        out.append((x_C[i + half] * math.cos(angle) + x_C[i] * math.sin(angle), i + half))
    return torch.stack([value for value, _ in sorted(out, key=lambda pair: pair[1])])


def attention(
    x_LD: torch.Tensor, w: dict[str, torch.Tensor], heads: int, kv_heads: int, theta: float, eps: float = 0.0
) -> torch.Tensor:
    """Causal grouped-query attention of one sequence.

    `w` holds q, k, v, o of shape (out, in), perhaps weights q_norm, k_norm of an RMSNorm over one head, or
    over all of them, whichever is as wide.
    """
    width = w["q"].shape[0] // heads

    def projected(name: str, position: int, rows: slice) -> torch.Tensor:
        whole = w[name] @ x_LD[position]
        weight = w.get(f"{name}_norm")
        if weight is None:
            return whole[rows]
        return (
            rms_norm(whole, weight, eps)[rows] if len(weight) > width else rms_norm(whole[rows], weight, eps)
        )

    rows = []
    for position in range(len(x_LD)):
        out = []
        for head in range(heads):
            kv = slice(head * kv_heads // heads * width, (head * kv_heads // heads + 1) * width)
            q = rotary(projected("q", position, slice(head * width, (head + 1) * width)), position, theta)
            scores = torch.stack(
                [q @ rotary(projected("k", j, kv), j, theta) / math.sqrt(width) for j in range(position + 1)]
            )
            weights = probabilities(scores)
            out.append(sum(weights[j] * (w["v"][kv] @ x_LD[j]) for j in range(position + 1)))
        rows.append(w["o"] @ torch.cat(out))
    return torch.stack(rows)


def capacities(
    factor: float, k: int, tokens: int, widths: list[int], by: str = "equal", least: int = 0
) -> list[int]:
    """ceil(factor k T / E), or in proportion to width; at least `least`."""
    shares = [1 / len(widths) if by == "equal" else h / sum(widths) for h in widths]
    return [max(least, math.ceil(factor * k * tokens * share - 1e-9)) for share in shares]


def with_capacity(
    probs_TE: torch.Tensor, choices: list[list[int]], limits: list[int], by_score: bool = False
) -> list[list[bool]]:
    """GShard: every first choice, in the tokens' order (or by largest probability), then every second, ...

    An expert whose slots are used up refuses.
    """
    order = list(range(len(choices)))
    if by_score:
        order.sort(key=lambda t: (-probs_TE[t].max().item(), t))
    used, kept = [0] * len(limits), [[False] * len(row) for row in choices]
    for rank in range(max((len(row) for row in choices), default=0)):
        for t in order:
            i = choices[t][rank]
            if used[i] < limits[i]:
                used[i] += 1
                kept[t][rank] = True
    return kept


def rectified(
    x_TD: torch.Tensor,
    w_router_ED: torch.Tensor,
    experts: list[Expert],
    *,
    k: int,
    limits: list[int],
    how: str,
    when: str,
    token_rank: list[int],
    expert_rank: list[int],
    extra: int = 0,
    by_score: bool = False,
) -> tuple[torch.Tensor, dict[str, int]]:
    """Rectify-Router, one token at a time (ALGORITHMS 3.2-3.4): (y_TD, slots).

    IR: o = [sum_R p E + (k - |R|) p_h E_h] / [sum_R p + (k - |R|) p_h] with a constant denominator, h the
    best expert of the token's rank; FR: k + 1 choices. With k = 1 and no FR an accepted expert has weight
    p - constant(p) + 1.
    """
    asked = k + ("fr" in how)
    probs_TE = torch.stack([probabilities(w_router_ED @ x_D) for x_D in x_TD])
    choices = [chosen(w_router_ED @ x_D, asked) for x_D in x_TD]
    kept = with_capacity(probs_TE, choices, limits, by_score)
    rows, slots = [], {"dropped": 0, "filled": 0, "rectified": 0, "padded": sum(limits)}
    for t, x_D in enumerate(x_TD):
        accepted = [i for i, ok in zip(choices[t], kept[t], strict=True) if ok]
        slots["dropped"] += sum(not ok for ok in kept[t][:k])
        slots["filled"] += sum(kept[t][k:])
        slots["padded"] -= len(accepted)
        weights = [(probs_TE[t, i], i) for i in accepted]
        needy = {"all": not accepted, "any": len(accepted) < asked, "fewer": len(accepted) < k}[when]
        own = [i for i in range(len(experts)) if expert_rank[i] == token_rank[t]]
        times = max(0, k + extra - len(accepted))
        if "ir" in how and needy and own and times:
            local = max(own, key=lambda i: (probs_TE[t, i].item(), -i))
            weights.append((times * probs_TE[t, local], local))
            slots["rectified"] += 1
        if asked == 1 and accepted:
            weight, i = weights[0]
            rows.append((weight - weight.detach() + 1) * expert(x_D, experts[i]))
            continue
        total = sum(weight.item() for weight, _ in weights)
        rows.append(
            sum((weight / total * expert(x_D, experts[i]) for weight, i in weights), torch.zeros_like(x_D))
        )
    return torch.stack(rows), slots


def expert_choice(probs_TE: torch.Tensor, limits: list[int]) -> list[list[int]]:
    """Zhou et al.: tokens of each expert, its most probable ones."""
    tokens = range(len(probs_TE))
    return [
        sorted(tokens, key=lambda t: (-probs_TE[t, i].item(), t))[:limit] for i, limit in enumerate(limits)
    ]


def grouped_sigmoid(
    logits_E: torch.Tensor, bias: list[float], k: int, groups: int, keep: int, scale: float
) -> dict[int, torch.Tensor]:
    """DeepSeek-V3: expert -> gate, chosen by sigmoid + bias in groups of largest two, gates without bias."""
    scores = [1 / (1 + torch.exp(-z)) for z in logits_E]
    values = [s.item() + b for s, b in zip(scores, bias, strict=True)]
    size = len(values) // groups
    best = [sum(sorted(values[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    kept = sorted(range(groups), key=lambda g: (-best[g], g))[:keep]
    allowed = [i for i in range(len(values)) if i // size in kept]
    taken = sorted(allowed, key=lambda i: (-values[i], i))[:k]
    total = sum(scores[i] for i in taken)
    return {i: scores[i] / total * scale for i in taken}


def zero_expert(
    x_D: torch.Tensor, kind: str, value_D: torch.Tensor | None = None, mix: torch.Tensor | None = None
) -> torch.Tensor:
    """MoE++: null 0, copy x, constant a1 x + a2 v with (a1, a2) = softmax(W x)."""
    if kind == "null":
        return torch.zeros_like(x_D)
    if kind == "copy":
        return x_D
    assert mix is not None
    a = probabilities(mix @ x_D)
    return a[0] * x_D + a[1] * value_D


def hyper_expert(x_D: torch.Tensor, unselected: list[int], w: dict[str, torch.Tensor]) -> torch.Tensor:
    """HyperMoE (ALGORITHMS 2.1), weights generated for this one token.

    `w`: embedding (E, 128); inner, outer, trunk and the four heads as `name.weight`, `name.bias`; layer_embedding (10).
    """

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ value + w[f"{name}.bias"]

    s = torch.zeros_like(w["embedding"][0])
    for j in unselected:
        s = s + w["embedding"][j]
    q = linear("outer", linear("inner", s).clamp(min=0))
    c = linear("trunk", torch.cat([q, w["layer_embedding"]])).clamp(min=0)
    dim = len(x_D)
    b_down, b_up = linear("b_down", c), linear("b_up", c)
    w_down, w_up = linear("w_down", c).view(len(b_down), dim), linear("w_up", c).view(dim, len(b_down))
    return w_up @ (w_down @ x_D + b_down).clamp(min=0) + b_up
