"""Experts cut between hidden units so that every process has an even part of memory and of work.

For two measures on a circle there is always an arc that holds 1/R of both, so R processes need at most 2 (R - 1) cuts:
the theorem of necklaces (Alon 1987; here by its proof for two measures). Units of all experts lie on the circle in the
order of how often they are activated; process after process takes an arc away.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hmoe.parallel.whole_experts import Portion, place_whole_experts

_TOLERANCE = 0.002  # by which a cut may move so that fewer experts are cut, of an even part
_MULTIPLES = (64, 32, 16, 8, 4, 2)  # of units at which kernels like cuts
_MOST_SPLITS = 8  # that are tried before as many cuts as it takes
_EVALUATIONS = 10_000  # of each of those searches
_MOST_ROUNDING = 0.008  # of an even part, that a process may have more for it


class _Segment(NamedTuple):
    """Units of one expert, that lie together on the circle, and how often they are activated."""

    expert: int
    size: int
    frequency: float


def split_experts(
    widths: Sequence[int], shares: Sequence[Portion], num_ranks: int, base: Portion
) -> Iterator[list[list[int]]]:
    """Yield placements with few cuts, each with one more: the largest expert, or half, quarter, ..., is halved.

    Rows are experts, columns processes, as of `cut_experts`, which cuts more, but makes any experts even.
    """
    pieces = [(i, width) for i, width in enumerate(widths)]
    for _ in range(min(2 * (num_ranks - 1), _MOST_SPLITS)):
        sizes = [max(shares[i]) * size / widths[i] if size > 1 else 0.0 for i, size in pieces]
        expert, size = pieces.pop(sizes.index(max(sizes)))
        if size < 2:
            return
        half = _round_to_multiple(size // 2, widths[expert])
        pieces += [(expert, half), (expert, size - half)]
        items = [Portion(*(share * size / widths[i] for share in shares[i])) for i, size in pieces]
        ranks = place_whole_experts(items, num_ranks, base, _EVALUATIONS)
        units = [[0] * num_ranks for _ in widths]
        for (i, size), rank in zip(pieces, ranks, strict=True):
            units[i][rank] += size
        yield units


def _round_to_multiple(size: int, width: int) -> int:
    """Return a number of units near to one, at a multiple that kernels like if the expert has many."""
    multiple = max((each for each in _MULTIPLES if 16 * each <= width), default=1)
    return max(1, size // multiple * multiple)


def cut_experts(widths: Sequence[int], frequencies: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Return how many units of each expert (rows) go to each process (columns); at most 2 (R - 1) cuts.

    They are at multiples of a power of two, up to 64, as long as that is small beside the part of a process.
    """
    units = [[0] * num_ranks for _ in widths]
    order = sorted(range(len(widths)), key=lambda i: (frequencies[i], i))
    circle = [_Segment(i, widths[i], frequencies[i]) for i in order]
    for rank in range(num_ranks - 1):
        arc, circle = _take_arc(circle, num_ranks - rank)
        for segment in arc:
            units[segment.expert][rank] += segment.size
    for segment in circle:
        units[segment.expert][num_ranks - 1] += segment.size
    for multiple in _MULTIPLES:
        rounded = [_round_cuts(of_expert, multiple) for of_expert in units]
        if _measure_excess(rounded, frequencies) <= _MOST_ROUNDING:
            return rounded
    return units


def _measure_excess(units: Sequence[Sequence[int]], frequencies: Sequence[float]) -> float:
    """Return by how much the fullest process exceeds an even part, of memory or of work."""
    excess = 0.0
    for weights in ([1.0] * len(units), frequencies):
        sums = [
            sum(w * n for w, n in zip(weights, column, strict=True)) for column in zip(*units, strict=True)
        ]
        excess = max(excess, max(sums) * len(sums) / (sum(sums) or 1.0) - 1)
    return excess


def _take_arc(circle: Sequence[_Segment], num_parts: int) -> tuple[list[_Segment], list[_Segment]]:
    """Return an arc with an even part of the circle's units and work, and what is left."""
    ends = [0]
    for segment in circle:
        ends.append(ends[-1] + segment.size)
    total, size = ends[-1], ends[-1] // num_parts
    work = _Work(circle, ends)
    target = work.total * size / total if total else 0.0  # which is the mean over all arcs
    # Between two of these the work of an arc changes evenly.
    firsts = sorted({end % total for end in ends} | {(end - size) % total for end in ends}) if total else [0]
    excess = [work.measure_arc(first, size) - target for first in firsts]
    best: tuple[float, int] | None = None
    for place, first in enumerate(firsts):
        last = firsts[(place + 1) % len(firsts)] + (total if place + 1 == len(firsts) else 0)
        low, high = excess[place], excess[(place + 1) % len(firsts)]
        if abs(low) <= _TOLERANCE * target:
            best = _choose(best, work.measure_cuts(first, size), first)
        if low * high < 0:
            crossing = first + (last - first) * low / (low - high)
            # Of the two units around it the one at which the arc has less too much or too little.
            near = [math.floor(crossing) % total, math.ceil(crossing) % total]
            between = min(near, key=lambda unit: abs(work.measure_arc(unit, size) - target))
            best = _choose(best, work.measure_cuts(between, size), between)
    if best is None:  # all but for rounding
        best = 0.0, firsts[min(range(len(firsts)), key=lambda place: abs(excess[place]))]
    return _split_circle(circle, ends, best[1], size)


def _choose(best: tuple[float, int] | None, cost: float, first: int) -> tuple[float, int]:
    return (cost, first) if best is None or cost < best[0] else best


class _Work:
    """How much the units on a circle are activated, from its begin up to any of them."""

    def __init__(self, circle: Sequence[_Segment], ends: Sequence[int]) -> None:
        self._circle, self._ends, self._borders = circle, ends, set(ends)
        self._sums = [0.0]
        for segment in circle:
            self._sums.append(self._sums[-1] + segment.size * segment.frequency)
        self.total = self._sums[-1]

    def _measure(self, place: int) -> float:
        k = self._find_segment(place)
        return self._sums[k] + (place - self._ends[k]) * (
            self._circle[k].frequency if k < len(self._circle) else 0
        )

    def _find_segment(self, place: int) -> int:
        return bisect_right(self._ends, place) - 1

    def measure_arc(self, first: int, size: int) -> float:
        """Return the work of so many units, from the first on."""
        end = first + size
        if end <= self._ends[-1]:
            return self._measure(end) - self._measure(first)
        return self.total - self._measure(first) + self._measure(end - self._ends[-1])

    def measure_cuts(self, first: int, size: int) -> float:
        """Return how often the experts are activated that an arc cuts: their tokens travel to one process more."""
        places = {first % self._ends[-1], (first + size) % self._ends[-1]}
        cut = [self._find_segment(place) for place in places if place not in self._borders]
        return sum(1e-9 + self._circle[k].frequency for k in cut)


def _split_circle(
    circle: Sequence[_Segment], ends: Sequence[int], first: int, size: int
) -> tuple[list[_Segment], list[_Segment]]:
    """Return the segments of an arc, and those outside."""
    arc, rest, total = [], [], ends[-1]
    for segment, begin, end in zip(circle, ends, ends[1:], strict=False):
        inside = sum(
            max(0, min(end, last) - max(begin, start))
            for start, last in ((first, first + size), (first - total, first + size - total))
        )
        if inside:
            arc.append(segment._replace(size=inside))
        if inside < segment.size:
            rest.append(segment._replace(size=segment.size - inside))
    return arc, rest


def _round_cuts(of_expert: Sequence[int], multiple: int) -> list[int]:
    """Return the units of an expert by process, with cuts at multiples of a number."""
    width, end, rounded, before = sum(of_expert), 0, [], 0
    for size in of_expert:
        end += size
        cut = width if end == width else min(width, (2 * end + multiple) // (2 * multiple) * multiple)
        rounded.append(cut - before)
        before = cut
    return rounded
