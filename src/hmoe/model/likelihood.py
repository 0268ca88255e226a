"""How probable a model finds tokens: the basis of validation, perplexity and benchmarks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from hmoe.model.attention import Attended, Attention, scaled_dot_product
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.trace import count_activated, count_scored_tokens, score_targets, sum_activated_units
from hmoe.model.transformer import Transformer, check_causal, without_capacities


@torch.no_grad()
def measure_mean_nll(model: Transformer, tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> float:
    """Return the mean negative log-likelihood of the targets, in nats per token."""
    x_BLD, _ = model.hidden(tokens_BL)
    # In chunks, since all logits of a batch at once can take more memory than the model.
    chunk = count_scored_tokens(model.config.vocab)
    return cross_entropy(x_BLD.flatten(0, 1), model.head_weight, targets_BL.flatten(), chunk).item()


def measure_text_nll(model: Transformer, tokens: list[int], window: int, num_given: int = 1) -> float:
    """Return the negative log-likelihood of tokens[num_given:] in nats, summed; see `score_text`."""
    total_nats = 0.0
    for part in score_text(model, tokens, window, num_given):
        total_nats += part.nats
    return total_nats


@dataclass(frozen=True)
class WindowScore:
    """What a model made of the tokens of a text that one of its windows counts.

    Attributes:
        nats: their negative log-likelihood, summed.
        tokens: how many they are.
        units: hidden units activated by the tokens that they were predicted from, one each, summed over MoE layers.
    """

    nats: float
    tokens: int
    units: float


@torch.no_grad()
def score_text(
    model: Transformer, tokens: list[int], window: int, num_given: int = 1
) -> Iterator[WindowScore]:
    """Yield the scores of tokens[num_given:], window by window; the text may have any length.

    Windows of `window` tokens advance by half a window, so every token but the first few is read after at
    least window / 2 tokens of context, and each is counted once.
    """
    device = model.embed.weight.device
    chunk = count_scored_tokens(model.config.vocab)
    widths = model.config.moe.routed_widths if model.config.moe else ()
    num_counted = num_given
    for start in range(0, max(len(tokens) - 1, 0), max(1, window // 2)):
        # One token more than is read: the last one is only predicted.
        piece = torch.tensor(tokens[start : start + window + 1], device=device)
        fresh = len(piece) - (num_counted - start)
        if fresh <= 0:
            continue
        x_BLD, routings = model.hidden(piece[None, :-1])
        # The window before has counted all targets but the last `fresh` ones.
        mean_nats = cross_entropy(x_BLD[0, -fresh:], model.head_weight, piece[-fresh:], chunk).item()
        units = [routing.width_T(widths)[-fresh:].sum() for routing in routings]
        yield WindowScore(fresh * mean_nats, fresh, float(torch.stack(units).sum()) if units else 0.0)
        num_counted = start + len(piece)


@dataclass(frozen=True)
class Candidate:
    """A sequence whose last `scored` tokens are to be scored; `scored` is below len(tokens)."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class CandidateScore:
    """What a model thinks of a candidate's scored tokens.

    Attributes:
        nll: negative log-likelihood in nats, summed over the tokens.
        greedy: whether each was the most probable token in its place.
    """

    nll: float
    greedy: bool


@dataclass(frozen=True)
class GroupCost:
    """What reading a group of candidates cost.

    Attributes:
        tokens: read by the model; a beginning that candidates share counts once.
        units: hidden units activated, summed over tokens and MoE layers.
        experts: experts that served them, summed over tokens and MoE layers.
    """

    tokens: int
    units: float
    experts: int


@dataclass(frozen=True)
class GroupScores:
    """Scores of all candidates, and what they cost.

    Attributes:
        groups: one list of scores per group of candidates.
        tokens, units: of all groups together, see `GroupCost`.
        costs: what each group cost.
    """

    groups: list[list[CandidateScore]]
    tokens: int
    units: float
    costs: list[GroupCost]


class _Groups:
    """A row of tokens that holds groups, each a shared beginning and then branches; no branch sees another.

    Every token of a beginning is read once, whatever the number of candidates, and nothing is padded.

    Attributes:
        tokens_BL: the row, (1, L).
        rows: for each candidate the places where its scored tokens are predicted.
        parts: for each group its first place, the place after its last, and the mask of its attention.
    """

    top_p_T: torch.Tensor | None = None
    noise_seed: int | None = None
    real_T: torch.Tensor | None = None

    def __init__(self, groups: Sequence[Sequence[Candidate]], device: torch.device) -> None:
        tokens: list[int] = []
        positions: list[int] = []
        self.rows: list[list[int]] = []
        self.parts: list[tuple[int, int, torch.Tensor | None]] = []
        # row:       [beginning of group 0][branch 1][branch 2]...  [beginning of group 1][branch 1]...
        # positions: 0 1 2 3               4 5       4 5 6          0 1                   2 3
        for group in groups:
            begin = len(tokens)
            # Nothing follows the last token of a candidate, so it is predicted but not read.
            inputs = [list(candidate.tokens[:-1]) for candidate in group]
            columns = zip(*inputs, strict=False)
            shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
            tokens += inputs[0][:shared]
            positions += range(shared)
            branches = [0] * shared
            for branch, (read, candidate) in enumerate(zip(inputs, group, strict=True), 1):
                own = len(read) - shared
                places = [*range(begin, begin + shared), *range(len(tokens), len(tokens) + own)]
                self.rows.append(places[-candidate.scored :])
                tokens += read[shared:]
                positions += range(shared, len(read))
                branches += [branch] * own
            self.parts.append((begin, len(tokens), _tree_mask(branches, device)))
        self.tokens_BL = torch.tensor([tokens], device=device)
        self._positions_BL = torch.tensor([positions], device=device)

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return positions with which each branch continues where the beginning ends."""
        return self._positions_BL

    def attend(
        self, attention: Attention, q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Attend group by group: a mask over the whole row would be mostly empty."""
        outs = []
        for begin, end, mask in self.parts:
            q, k, v = (x[:, :, begin:end] for x in (q_BHLC, k_BGLC, v_BGLC))
            outs.append(scaled_dot_product(q, k, v, mask, mask is None))
        return torch.cat(outs, dim=1), None


def _tree_mask(branches: list[int], device: torch.device) -> torch.Tensor | None:
    """Return (L, L) bool: earlier tokens of the beginning (branch 0) and of the same branch are seen.

    None where that is plain causal attention, which has faster kernels without a mask.
    """
    if max(branches, default=0) <= 1:
        return None
    branch_L = torch.tensor(branches, device=device)
    seen_LL = (branch_L[None] == 0) | (branch_L[None] == branch_L[:, None])
    return seen_LL.tril()


@torch.no_grad()
def score_candidates(model: Transformer, groups: Sequence[Sequence[Candidate]]) -> GroupScores:
    """Score the candidates of every group in one pass; what those of a group begin with is read once.

    Routers have no capacity here, by which an answer's score would depend on its rivals.

    Raises:
        ConfigError: for a model that is not causal, whose score of a token would know the token.
    """
    check_causal(model.config)
    batch = _Groups(groups, model.embed.weight.device)
    # How many candidates are read together must not decide which tokens an expert has room for.
    with without_capacities(model):
        x_BLD, routings = model.hidden(batch.tokens_BL, batch)
    rows = [place for places in batch.rows for place in places]
    # Both lists go group by group, candidate by candidate, so that scores are slices of what comes back.
    targets = [t for group in groups for c in group for t in c.tokens[len(c.tokens) - c.scored :]]
    device = x_BLD.device
    nll_T, greedy_T = score_targets(
        model, x_BLD[0, torch.tensor(rows, device=device)], torch.tensor(targets, device=device)
    )
    scores_by_group: list[list[CandidateScore]] = []
    begin = 0
    for group in groups:
        scores = []
        for candidate in group:
            scored = slice(begin, begin + candidate.scored)
            scores.append(CandidateScore(float(nll_T[scored].sum()), bool(greedy_T[scored].all())))
            begin = scored.stop
        scores_by_group.append(scores)
    widths = model.config.moe.routed_widths if model.config.moe else ()
    num_tokens = batch.tokens_BL.shape[1]
    units_T, experts_T = (counts_T.cpu() for counts_T in count_activated(routings, widths, num_tokens))
    costs = [
        GroupCost(end - begin, float(units_T[begin:end].sum()), int(experts_T[begin:end].sum()))
        for begin, end, _ in batch.parts
    ]
    return GroupScores(scores_by_group, num_tokens, sum_activated_units(routings, widths), costs)
