"""The search for a placement of whole experts: the largest first, then what helps the fullest process."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

_EVEN = 1.0005  # times even: no longer search for better
_EVALUATIONS = 40_000  # of moves and swaps, about, until the search stops to begin again elsewhere
_TINY = 1e-12  # of rounding
_BOTH, _MEMORY, _WORK = range(3)  # what a search makes small


class Portion(NamedTuple):
    """What an expert, or all that a process has, takes of all memory and of all work."""

    memory: float
    work: float


NOTHING = Portion(0.0, 0.0)


def list_portions(widths: Sequence[int], frequencies: Sequence[float]) -> list[Portion]:
    """Return the share of memory and of work that falls to each expert."""
    memory, work = sum(widths), sum(f * h for f, h in zip(frequencies, widths, strict=True)) or 1.0
    return [Portion(h / memory, f * h / work) for f, h in zip(frequencies, widths, strict=True)]


def place_whole_experts(
    experts: Sequence[Portion], num_ranks: int, base: Portion = NOTHING, evaluations: int = _EVALUATIONS
) -> list[int]:
    """Return the process of each expert, such that the largest share of a process is small.

    Of placements alike in that, such as where one expert has more work than falls to a process, the one whose other
    measure is smaller. The same for the same experts: what is drawn has a fixed seed.

    Args:
        experts: their shares.
        num_ranks: processes.
        base: what each process has already.
        evaluations: of moves and swaps, after which the search stops, about.
    """
    if num_ranks == 1 or not experts:
        return [0] * len(experts)
    # No process can have less than an even part of all, nor than the largest expert.
    floors = Portion(
        *(
            max(*own, sum(own) / num_ranks) + have
            for own, have in zip(zip(*experts, strict=True), base, strict=True)
        )
    )
    best = _Search(experts, num_ranks, base)
    best.place_by_size(max)
    best.improve()
    used, generator = best.evaluations, random.Random(0)
    others: list[Callable[[Portion], float]] = [sum, lambda shares: shares.memory, lambda shares: shares.work]
    while used < evaluations and not best.is_near(floors):
        search = _Search(experts, num_ranks, base)
        if others:
            search.place_by_size(others.pop())
        else:
            search.place_as(_shake(best.ranks, num_ranks, generator))
        search.improve()
        used += search.evaluations + len(experts)
        best = min(best, search, key=_Search.rate)
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

    def __init__(self, experts: Sequence[Portion], num_ranks: int, base: Portion) -> None:
        self.ranks, self.evaluations = [-1] * len(experts), 0
        self._experts = experts
        self._on: list[list[int]] = [[] for _ in range(num_ranks)]
        self._memory, self._work = [base.memory] * num_ranks, [base.work] * num_ranks

    def rate(self) -> tuple[float, float]:
        """Return the largest share of a process, of both measures, then of the other one."""
        largest = sorted((max(self._memory), max(self._work)))
        return round(largest[1], 9), largest[0]

    def is_near(self, floors: Portion) -> bool:
        """Return whether both measures are nearly as small as they can be, or the larger and all that it allows."""
        return all(
            max(own) <= _EVEN * floor for own, floor in zip((self._memory, self._work), floors, strict=True)
        )

    def place_as(self, ranks: Sequence[int]) -> None:
        """Begin with a placement."""
        for expert, rank in enumerate(ranks):
            self._put(expert, rank)

    def place_by_size(self, measure: Callable[[Portion], float]) -> None:
        """Place the experts, from the largest to the smallest, where they leave most room."""
        for expert in sorted(range(len(self._experts)), key=lambda i: -measure(self._experts[i])):
            memory, work = self._experts[expert]
            sums = [(max(m + memory, w + work), m + w) for m, w in zip(self._memory, self._work, strict=True)]
            self._put(expert, sums.index(min(sums)))

    def improve(self) -> None:
        """Move an expert, or swap two, as long as the fullest process becomes less full, and no other as full.

        Then the same for the measure that is smaller, while the other one does not become worse.
        """
        self._improve(_BOTH)
        worst = max(*self._memory, *self._work)
        self._improve(_MEMORY if max(self._memory) < worst else _WORK, worst + _TINY)

    def _improve(self, kind: int, bound: float = 0.0) -> None:
        while True:
            if kind == _BOTH:
                fullness = [max(shares) for shares in zip(self._memory, self._work, strict=True)]
            else:
                fullness = self._memory if kind == _MEMORY else self._work
            limit = max(fullness)
            step = self._find_step(fullness.index(limit), limit - _TINY, kind, bound)
            if step is None:
                return
            expert, other_rank, other = step
            rank = self.ranks[expert]
            self._put(expert, other_rank)
            if other is not None:
                self._put(other, rank)

    def _find_step(
        self, rank: int, limit: float, kind: int, bound: float
    ) -> tuple[int, int, int | None] | None:
        """Return the best move, or swap, of an expert on a process: expert, other process, its expert."""
        step: tuple[int, int, int | None] | None = None
        most_memory = limit if kind != _WORK else bound
        most_work = limit if kind != _MEMORY else bound
        experts = self._experts
        for expert in self._on[rank]:
            of_memory, of_work = experts[expert]
            rest_memory, rest_work = self._memory[rank] - of_memory, self._work[rank] - of_work
            if rest_memory >= most_memory or rest_work >= most_work:
                continue
            for other_rank, others in enumerate(self._on):
                if other_rank == rank:
                    continue
                sum_memory, sum_work = self._memory[other_rank] + of_memory, self._work[other_rank] + of_work
                self.evaluations += 1 + len(others)
                for other, (m, w) in [(None, NOTHING), *((j, experts[j]) for j in others)]:
                    # One after another: most swaps fail at the first.
                    if (
                        sum_memory - m < most_memory and rest_memory + m < most_memory
                        and sum_work - w < most_work and rest_work + w < most_work
                    ):  # fmt: skip
                        step = (expert, other_rank, other)
                        memory, work = max(sum_memory - m, rest_memory + m), max(sum_work - w, rest_work + w)
                        if kind == _BOTH:
                            most_memory = most_work = max(memory, work)
                        elif kind == _MEMORY:
                            most_memory = memory
                        else:
                            most_work = work
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
