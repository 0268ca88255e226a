"""How probable a model finds tokens: the basis of validation, perplexity and benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from hmoe.model.attention import Attended, Attention, scaled_dot_product
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.transformer import Transformer, check_causal, dropless

_CHUNK_NUMBERS = 2**24  # logits that exist at one time


@torch.no_grad()
def mean_nll(model: Transformer, tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> float:
    """Mean negative log-likelihood of the targets, in nats per token."""
    x_BLD, _ = model.hidden(tokens_BL)
    chunk = max(1, _CHUNK_NUMBERS // model.config.vocab)
    return cross_entropy(x_BLD.flatten(0, 1), model.head_weight, targets_BL.flatten(), chunk).item()


@torch.no_grad()
def text_nll(model: Transformer, tokens: list[int], window: int, num_given: int = 1) -> float:
    """Negative log-likelihood of tokens[num_given:] in nats, summed, any length.

    Windows of `window` tokens advance by half a window, so every token but the first few is read after at least
    window / 2 tokens of context, and each is counted once.
    """
    device = model.embed.weight.device
    stride = max(1, window // 2)
    total, done = 0.0, num_given
    for start in range(0, max(len(tokens) - 1, 0), stride):
        piece = torch.tensor(tokens[start : start + window + 1], device=device)
        fresh = len(piece) - (done - start)  # targets not counted by the window before
        if fresh <= 0:
            continue
        x_BLD, _ = model.hidden(piece[None, :-1])
        chunk = max(1, _CHUNK_NUMBERS // model.config.vocab)
        total += fresh * cross_entropy(x_BLD[0, -fresh:], model.head_weight, piece[-fresh:], chunk).item()
        done = start + len(piece)
    return total


@dataclass(frozen=True)
class Candidate:
    """A sequence whose last `scored` tokens are asked for; `scored` is below len(tokens)."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood of the scored tokens in nats, summed; whether each was the most probable one."""

    nll: float
    greedy: bool


@dataclass(frozen=True)
class Scores:
    """One list of scores per group, and what was computed: tokens read, hidden units activated (all MoE layers)."""

    groups: list[list[Score]]
    tokens: int
    units: float


class _Groups:
    """A row of tokens that holds groups, each a shared beginning and then branches; no branch sees another.

    Every token of a beginning is read once, whatever the number of candidates, and nothing is padded.
    """

    top_p_T: torch.Tensor | None = None
    noise_seed: int | None = None
    real_T: torch.Tensor | None = None

    def __init__(self, groups: Sequence[Sequence[Candidate]], device: torch.device) -> None:
        tokens: list[int] = []
        positions: list[int] = []
        self.rows: list[list[list[int]]] = []  # of each candidate, where its scored tokens are predicted
        self.parts: list[tuple[int, int, torch.Tensor | None]] = []  # of each group: begin, end, mask
        for group in groups:
            begin = len(tokens)
            inputs = [list(candidate.tokens[:-1]) for candidate in group]
            shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*inputs, strict=False)))
            tokens += inputs[0][:shared]
            positions += range(shared)
            branch, rows = [0] * shared, []
            for number, (one, candidate) in enumerate(zip(inputs, group, strict=True), 1):
                place = [*range(begin, begin + shared), *range(len(tokens), len(tokens) + len(one) - shared)]
                rows.append(place[-candidate.scored :])
                tokens += one[shared:]
                positions += range(shared, len(one))
                branch += [number] * (len(one) - shared)
            self.rows.append(rows)
            self.parts.append((begin, len(tokens), _tree_mask(branch, device)))
        self.tokens_BL = torch.tensor([tokens], device=device)
        self._positions_BL = torch.tensor([positions], device=device)

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Each branch continues where the beginning ends."""
        return self._positions_BL

    def attend(
        self, attention: Attention, q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Group by group."""
        outs = []
        for begin, end, mask in self.parts:
            q, k, v = (x[:, :, begin:end] for x in (q_BHLC, k_BGLC, v_BGLC))
            outs.append(scaled_dot_product(q, k, v, mask, mask is None))
        return torch.cat(outs, dim=1), None


def _tree_mask(branch: list[int], device: torch.device) -> torch.Tensor | None:
    """(L, L) bool: earlier tokens of the beginning (0) and of the same branch; None where that is plain causal."""
    if max(branch, default=0) <= 1:
        return None
    of = torch.tensor(branch, device=device)
    seen = (of[None] == 0) | (of[None] == of[:, None])
    return seen.tril()


@torch.no_grad()
def score(model: Transformer, groups: Sequence[Sequence[Candidate]]) -> Scores:
    """Score the candidates of every group in one pass; what the candidates of a group begin with is read once.

    A router's capacity is off, by which an answer's score would depend on its rivals.

    Raises:
        ConfigError: for a model that is not causal, whose score of a token would know the token.
    """
    check_causal(model.config)
    batch = _Groups(groups, model.embed.weight.device)
    with dropless(model):
        x_BLD, routings = model.hidden(batch.tokens_BL, batch)
    rows = [row for group in batch.rows for candidate in group for row in candidate]
    targets = [t for group in groups for c in group for t in c.tokens[len(c.tokens) - c.scored :]]
    nll_T, greedy_T = _predictions(model, x_BLD[0], rows, targets)
    found, done = [], 0
    for group in groups:
        scores = []
        for candidate in group:
            part = slice(done, done + candidate.scored)
            scores.append(Score(float(nll_T[part].sum()), bool(greedy_T[part].all())))
            done = part.stop
        found.append(scores)
    widths = model.config.moe.routed_widths if model.config.moe else ()
    units = sum(float((r.num_tokens_E.cpu() * torch.tensor(widths)).sum()) for r in routings)
    return Scores(found, batch.tokens_BL.shape[1], units)


def _predictions(
    model: Transformer, x_TD: torch.Tensor, rows: list[int], targets: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each target: its negative log-likelihood (float64, CPU), and whether it is the most probable token."""
    chunk, nlls, greedy = max(1, _CHUNK_NUMBERS // model.config.vocab), [], []
    device = x_TD.device
    row_N, target_N = torch.tensor(rows, device=device), torch.tensor(targets, device=device)
    for row_M, target_M in zip(torch.split(row_N, chunk), torch.split(target_N, chunk), strict=True):
        logits_MV = (x_TD[row_M] @ model.head_weight.T).to(torch.promote_types(x_TD.dtype, torch.float32))
        nlls.append(torch.nn.functional.cross_entropy(logits_MV, target_M, reduction="none").double().cpu())
        greedy.append((logits_MV.argmax(1) == target_M).cpu())
    return torch.cat(nlls), torch.cat(greedy)
