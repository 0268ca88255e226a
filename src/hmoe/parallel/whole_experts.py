"""The search for a placement of whole experts: the largest first, then what helps the fullest process."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

_EVEN = 1.0005  # times even: no longer search for better
_EVALUATIONS = 40_000  # of moves and swaps, about, until the search stops to begin again elsewhere
_TINY = 1e-12  # of rounding


class Shares(NamedTuple):
    """What an expert takes of all memory, and of all work."""

    memory: float
    work: float


def place_whole_experts(experts: Sequence[Shares], num_ranks: int) -> list[int]:
    """Return the process of each expert, such that the largest share of a process is small.

    The same for the same experts: what is drawn has a fixed seed.
    """
    if num_ranks == 1 or not experts:
        return [0] * len(experts)
    # No process can have less than an even part, nor than the largest expert.
    floor = max(_EVEN / num_ranks, max(max(shares) for shares in experts) + _TINY)
    best = _Search(experts, num_ranks)
    best.place_by_size(max)
    best.improve()
    evaluations, generator = best.evaluations, random.Random(0)
    others: list[Callable[[Shares], float]] = [sum, lambda shares: shares.memory, lambda shares: shares.work]
    while best.find_worst() > floor and evaluations < _EVALUATIONS:
        search = _Search(experts, num_ranks)
        if others:
            search.place_by_size(others.pop())
        else:
            search.place_as(_shake(best.ranks, num_ranks, generator))
        search.improve()
        evaluations += search.evaluations + len(experts)
        best = min(best, search, key=_Search.find_worst)
    return best.ranks


def _shake(ranks: Sequence[int], num_ranks: int, generator: random.Random) -> list[int]:
    """Return a placement in which a few experts are elsewhere."""
    shaken = list(ranks)
    for _ in range(generator.randint(2, 5)):
        shaken[generator.randrange(len(shaken))] = generator.randrange(num_ranks)
    return shaken


class _Search:
    """A placement that becomes more even step by step.

    Attributes:
        ranks: process of each expert.
        evaluations: of moves and swaps.
    """

    def __init__(self, experts: Sequence[Shares], num_ranks: int) -> None:
        self.ranks, self.evaluations = [-1] * len(experts), 0
        self._experts = experts
        self._on: list[list[int]] = [[] for _ in range(num_ranks)]
        self._memory, self._work = [0.0] * num_ranks, [0.0] * num_ranks

    def find_worst(self) -> float:
        """Return the largest share of a process."""
        return max(*self._memory, *self._work)

    def place_as(self, ranks: Sequence[int]) -> None:
        """Begin with a placement."""
        for expert, rank in enumerate(ranks):
            self._put(expert, rank)

    def place_by_size(self, measure: Callable[[Shares], float]) -> None:
        """Place the experts, from the largest to the smallest, where they leave most room."""
        for expert in sorted(range(len(self._experts)), key=lambda i: -measure(self._experts[i])):
            memory, work = self._experts[expert]
            sums = [(max(m + memory, w + work), m + w) for m, w in zip(self._memory, self._work, strict=True)]
            self._put(expert, sums.index(min(sums)))

    def improve(self) -> None:
        """Move an expert, or swap two, as long as the fullest process becomes less full, and no other as full."""
        while True:
            fullest = [max(shares) for shares in zip(self._memory, self._work, strict=True)]
            rank = fullest.index(max(fullest))
            step = self._find_step(rank, fullest[rank] - _TINY)
            if step is None:
                return
            expert, other_rank, other = step
            self._put(expert, other_rank)
            if other is not None:
                self._put(other, rank)

    def _find_step(self, rank: int, limit: float) -> tuple[int, int, int | None] | None:
        """Return the best move, or swap, of an expert on a process: expert, other process, its expert."""
        step: tuple[int, int, int | None] | None = None
        experts = self._experts
        memory, work = self._memory[rank], self._work[rank]
        for expert in self._on[rank]:
            of_memory, of_work = experts[expert]
            rest_memory, rest_work = memory - of_memory, work - of_work
            if rest_memory >= limit or rest_work >= limit:
                continue
            for other_rank, others in enumerate(self._on):
                if other_rank == rank:
                    continue
                sum_memory, sum_work = self._memory[other_rank] + of_memory, self._work[other_rank] + of_work
                worst = max(rest_memory, rest_work, sum_memory, sum_work)
                if worst < limit:
                    step, limit = (expert, other_rank, None), worst
                self.evaluations += 1 + len(others)
                for other in others:
                    m, w = experts[other]
                    # One after another: most swaps fail at the first.
                    if (
                        rest_memory + m < limit and rest_work + w < limit
                        and sum_memory - m < limit and sum_work - w < limit
                    ):  # fmt: skip
                        limit = max(rest_memory + m, rest_work + w, sum_memory - m, sum_work - w)
                        step = (expert, other_rank, other)
        return step

    def _put(self, expert: int, rank: int) -> None:
        (memory, work), before = self._experts[expert], self.ranks[expert]
        if before >= 0:
            self._on[before].remove(expert)
            self._memory[before] -= memory
            self._work[before] -= work
        self.ranks[expert] = rank
        self._on[rank].append(expert)
        self._memory[rank] += memory
        self._work[rank] += work
