"""Triton kernels of a router: logits -> chosen experts, gates and pairs sorted by expert, and back.

No size reaches the host. A program holds a block of tokens and all experts. Pairs are placed by counting: per
block, then over the blocks of an expert, then within a block, so their order is that of expert and token
whatever ran first.

    pairs:        [expert 0][expert 1]...               where an expert begins: sum of the counts before it
    expert 0:     [block 0][block 1]...                 where a block begins: `block_begin`, (experts, blocks)
    block 0:      [first token that chose it][next]...  where a token's pair is: those before it in the block
"""

import triton
import triton.language as tl

SMALLEST = tl.constexpr(1e-30)  # of what gates are divided by, as in `hmoe.model.capacity`


@triton.jit
def _cells(num_tokens, E: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Return the program's tokens, the experts, which of their pairs exist, and offsets in a (T, E) table."""
    token, lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    real = (token < num_tokens)[:, None] & (lane < E)[None, :]
    return token, lane, real, token[:, None].to(tl.int64) * E + lane[None, :]


@triton.jit
def _load_scores(logits_TE, at, real, SIGMOID: tl.constexpr):
    """Load the logits, and compute scores from them: the softmax of a row, or the sigmoid of each.

    Scores are NaN in rows that are not finite.
    """
    z = tl.load(logits_TE + at, mask=real, other=0.0)
    finite = tl.min((~real | (tl.abs(z) < float("inf"))).to(tl.int32), 1) == 1  # NaN compares false
    if SIGMOID:
        score = tl.sigmoid(z)
    else:
        # Rows that are not finite are computed as zeros here, and become NaN below.
        known = tl.where(finite[:, None], z, 0.0)
        exp = tl.where(real, tl.exp(known - tl.max(tl.where(real, known, -float("inf")), 1)[:, None]), 0.0)
        score = exp / tl.maximum(tl.sum(exp, 1), SMALLEST)[:, None]
    score = tl.where(finite[:, None], score, float("nan"))
    return z, tl.where(real, score, 0.0)


@triton.jit
def _first_largest(value, free, lane, PADDED: tl.constexpr):
    """Return the lane of the largest free value of each row, the lowest among equals."""
    best = tl.max(tl.where(free, value, -float("inf")), 1)
    return tl.min(tl.where(free & (value == best[:, None]), lane[None, :], PADDED), 1)


@triton.jit
def _choose(
    value, score, lane, p, E: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr
):
    """Return 1 for the K largest values of a row, or if K is 0 for the largest until their scores reach p."""
    chosen = tl.zeros((BLOCK, PADDED), tl.int32)
    # All experts: no comparison may leave one out.
    if K == E:
        chosen += (lane < E).to(tl.int32)[None, :]
    elif K > 0:
        for _ in range(K):
            free = (lane < E)[None, :] & (chosen == 0)
            first = _first_largest(value, free, lane, PADDED)
            chosen += (lane[None, :] == first[:, None]).to(tl.int32)
    else:
        seen, larger = tl.zeros((BLOCK, PADDED), tl.int32), tl.zeros((BLOCK,), tl.float32)
        for i in range(E):
            first = _first_largest(value, (lane < E)[None, :] & (seen == 0), lane, PADDED)
            here = (lane[None, :] == first[:, None]).to(tl.int32)
            keep = (larger < p) | (i == 0)  # the largest without comparing, and the one that crosses p
            chosen += here * keep.to(tl.int32)[:, None]
            seen += here
            larger += tl.sum(tl.where(here == 1, score, 0.0), 1)
    return chosen


@triton.jit(do_not_specialize=["num_tokens", "p", "blocks"])
def choose_kernel(
    logits_TE,
    bias_E,
    probs_TE,
    chosen_TE,
    block_count,
    num_tokens,
    blocks,
    p,
    E: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    SIGMOID: tl.constexpr,
    BIASED: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """Compute probabilities, choose each token's experts unless GIVEN, and count each expert's tokens."""
    _token, lane, real, at = _cells(num_tokens, E, PADDED, BLOCK)
    z, score = _load_scores(logits_TE, at, real, SIGMOID)
    probs = score
    if SIGMOID:
        probs = score / tl.maximum(tl.sum(score, 1), SMALLEST)[:, None]
    tl.store(probs_TE + at, probs, mask=real)
    if GIVEN:
        chosen = tl.load(chosen_TE + at, mask=real, other=0).to(tl.int32)
    else:
        value = z
        if BIASED:
            value = score + tl.load(bias_E + lane, mask=lane < E, other=0.0)[None, :]
        # A row with NaN has choices too, so that the counts are right; its gates are NaN.
        value = tl.where(value != value, float("inf"), value)  # noqa: PLR0124
        chosen = _choose(value, score, lane, p, E, PADDED, BLOCK, K)
        tl.store(chosen_TE + at, chosen.to(tl.int8), mask=real)
    count = tl.sum(tl.where(real, chosen, 0), 0)
    tl.store(block_count + lane * blocks + tl.program_id(0), count, mask=lane < E)


@triton.jit(do_not_specialize=["blocks"])
def begin_kernel(block_count, num_tokens_E, blocks, CHUNK: tl.constexpr):
    """Replace the counts of an expert's blocks by where each begins in the expert; one program per expert."""
    row, total = block_count + tl.program_id(0) * blocks, tl.zeros((), tl.int32)
    for first in range(0, blocks, CHUNK):
        block = first + tl.arange(0, CHUNK)
        count = tl.load(row + block, mask=block < blocks, other=0)
        tl.store(row + block, total + tl.cumsum(count, 0) - count, mask=block < blocks)
        total += tl.sum(count, 0)
    tl.store(num_tokens_E + tl.program_id(0), total.to(tl.int64))


@triton.jit
def _places(num_tokens_E, block_begin, chosen, lane, blocks, E: tl.constexpr):
    """Return where the pair of each chosen token and expert lies among the pairs sorted by expert."""
    count = tl.load(num_tokens_E + lane, mask=lane < E, other=0)
    begin = (
        tl.cumsum(count, 0)
        - count
        + tl.load(block_begin + lane * blocks + tl.program_id(0), mask=lane < E, other=0)
    )
    return begin[None, :] + tl.cumsum(chosen, 0) - chosen


@triton.jit(do_not_specialize=["num_tokens", "blocks", "scale"])
def pairs_kernel(
    logits_TE,
    chosen_TE,
    num_tokens_E,
    block_begin,
    token_N,
    expert_N,
    gate_N,
    num_tokens,
    blocks,
    scale,
    E: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """Write token, expert and gate of every pair of this block to its place."""
    token, lane, real, at = _cells(num_tokens, E, PADDED, BLOCK)
    chosen = tl.load(chosen_TE + at, mask=real, other=0).to(tl.int32)
    _, score = _load_scores(logits_TE, at, real, SIGMOID)
    gate = score * chosen.to(tl.float32)
    if RENORMALIZE:
        total = tl.sum(gate, 1)
        gate = gate / tl.where(total < SMALLEST, SMALLEST, total)[:, None]  # NaN stays
    place = _places(num_tokens_E, block_begin, chosen, lane, blocks, E)
    tl.store(token_N + place, (token[:, None] + lane[None, :] * 0).to(tl.int64), mask=chosen == 1)
    tl.store(expert_N + place, (token[:, None] * 0 + lane[None, :]).to(tl.int64), mask=chosen == 1)
    tl.store(gate_N + place, gate * scale, mask=chosen == 1)


@triton.jit(do_not_specialize=["num_tokens", "blocks", "scale"])
def select_backward_kernel(
    dprobs_TE,
    dgate_N,
    logits_TE,
    chosen_TE,
    num_tokens_E,
    block_begin,
    dlogits_TE,
    num_tokens,
    blocks,
    scale,
    E: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    PROBS: tl.constexpr,
    GATES: tl.constexpr,
):
    """Compute d logits from those of the probabilities (if PROBS) and of the gates (if GATES)."""
    _token, lane, real, at = _cells(num_tokens, E, PADDED, BLOCK)
    _, score = _load_scores(logits_TE, at, real, SIGMOID)
    dscore = tl.zeros((BLOCK, PADDED), tl.float32)
    if GATES:
        chosen = tl.load(chosen_TE + at, mask=real, other=0).to(tl.int32)
        place = _places(num_tokens_E, block_begin, chosen, lane, blocks, E)
        dgate = tl.load(dgate_N + place, mask=chosen == 1, other=0.0) * scale
        if RENORMALIZE:
            total = tl.sum(tl.where(chosen == 1, score, 0.0), 1)
            small = total < SMALLEST  # then the divisor is a constant
            inner = tl.sum(dgate * tl.where(chosen == 1, score, 0.0), 1) / tl.where(small, 1.0, total)
            total = tl.where(small, SMALLEST, total)
            dscore = tl.where(chosen == 1, dgate - tl.where(small, 0.0, inner)[:, None], 0.0) / total[:, None]
        else:
            dscore = dgate
    if PROBS:
        dprobs = tl.load(dprobs_TE + at, mask=real, other=0.0)
        if SIGMOID:
            total = tl.maximum(tl.sum(score, 1), SMALLEST)
            dscore += (dprobs - (tl.sum(dprobs * score, 1) / total)[:, None]) / total[:, None]
        else:
            dscore += dprobs
    # The derivative of a softmax takes off the mean under it; a sigmoid's scores do not depend on each other.
    mean = tl.sum(tl.where(real, dscore * score, 0.0), 1)[:, None]
    dlogits = dscore * score * (1 - score) if SIGMOID else score * (dscore - mean)
    tl.store(dlogits_TE + at, dlogits, mask=real)
