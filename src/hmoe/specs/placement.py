"""Which process holds which hidden units of a layer's experts: a value, whoever solved it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hmoe.errors import ConfigError


class ExpertPart(NamedTuple):
    """Hidden units of an expert that one process holds: all of them, unless the expert is cut.

    Attributes:
        expert: its number in the layer.
        first_unit, num_units: which of its hidden units.
        rank: number of the process in its group.
    """

    expert: int
    first_unit: int
    num_units: int
    rank: int


@dataclass(frozen=True)
class Placement:
    """Where the experts of a layer live in a group of processes (paper, appendix D).

    Attributes:
        widths: hidden units of each expert.
        num_ranks: processes of the group.
        parts: each hidden unit of an expert once, by expert and unit; none of those that are everywhere.
        everywhere: experts of which every process has a replica, in rising order.

    Raises:
        ConfigError: if a unit lies nowhere or twice, or on a process that the group does not have.
    """

    widths: tuple[int, ...]
    num_ranks: int
    parts: tuple[ExpertPart, ...] = field(default=())
    everywhere: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(ExpertPart(*part) for part in self.parts if part[2]))
        object.__setattr__(self, "parts", ordered)
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "everywhere", tuple(sorted(self.everywhere)))
        self._check()

    def _check(self) -> None:
        units = dict.fromkeys(range(len(self.widths)), 0)
        for expert, first, size, rank in self.parts:
            if not (0 <= expert < len(self.widths) and 0 <= rank < self.num_ranks):
                raise ConfigError(
                    f"placement: expert {expert} on process {rank}, must be one of {len(self.widths)} experts "
                    f"on one of {self.num_ranks} processes"
                )
            if first != units[expert]:
                raise ConfigError(
                    f"placement: unit {min(first, units[expert])} of expert {expert} lies nowhere or twice"
                )
            units[expert] += size
        for expert, width in enumerate(self.widths):
            expected = 0 if expert in self.everywhere else width
            if units[expert] != expected:
                raise ConfigError(
                    f"placement: {units[expert]} of {expected} units of expert {expert} have a process"
                )
        if self.everywhere and not (self.everywhere[0] >= 0 and self.everywhere[-1] < len(self.widths)):
            raise ConfigError(
                f"placement: everywhere = {self.everywhere}, there are {len(self.widths)} experts"
            )

    def list_parts(self, rank: int) -> list[ExpertPart]:
        """Return what a process holds, by expert."""
        return [part for part in self.parts if part.rank == rank]

    def count_units(self, rank: int) -> int:
        """Return the hidden units that a process holds, without replicas."""
        return sum(part.num_units for part in self.list_parts(rank))

    @property
    def num_cuts(self) -> int:
        """Places at which an expert is cut."""
        return len(self.parts) - len({part.expert for part in self.parts})

    def list_whole_ranks(self) -> list[int | None]:
        """Return the process that holds each expert alone; None for one that is cut, or everywhere."""
        ranks: list[int | None] = [None] * len(self.widths)
        for part in self.parts:
            if part.num_units == self.widths[part.expert]:
                ranks[part.expert] = part.rank
        return ranks

    def list_rows(self, rank: int) -> list[range]:
        """Return the rows of the layer's weights (F, D) that a process holds, in the order in which it holds them."""
        begins = self._list_begins()
        return [
            range(
                begins[part.expert] + part.first_unit, begins[part.expert] + part.first_unit + part.num_units
            )
            for part in self.list_parts(rank)
        ]

    def list_replica_rows(self) -> list[range]:
        """Return the rows of the layer's weights (F, D) that every process holds."""
        begins = self._list_begins()
        return [range(begins[expert], begins[expert] + self.widths[expert]) for expert in self.everywhere]

    def _list_begins(self) -> list[int]:
        begins = [0]
        for width in self.widths:
            begins.append(begins[-1] + width)
        return begins

    def to_plain(self) -> dict[str, Any]:
        """Return the placement as plain values, such as JSON keeps."""
        return {
            "widths": list(self.widths),
            "num_ranks": self.num_ranks,
            "parts": [list(part) for part in self.parts],
            "everywhere": list(self.everywhere),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Placement":
        """Return the placement of plain values."""
        parts = tuple(ExpertPart(*part) for part in plain["parts"])
        return cls(tuple(plain["widths"]), plain["num_ranks"], parts, tuple(plain["everywhere"]))


class Balance(NamedTuple):
    """How evenly a placement spreads memory and computing: the most of a process, divided by an even part of all.

    Attributes:
        memory: of hidden units. 1: even, and nothing twice; replicas count where they are, so they cost memory.
        compute: of hidden units times the tokens that activate them; 1: even.
    """

    memory: float
    compute: float

    @property
    def worst(self) -> float:
        """The larger of both."""
        return max(self)


def measure_balance(placement: Placement, frequencies: Sequence[float]) -> Balance:
    """Return how evenly a placement spreads memory and computing.

    Args:
        placement: of the experts.
        frequencies: how often each expert is activated, in any unit; tokens of all processes.
    """
    ranks = range(placement.num_ranks)
    replica_units = sum(placement.widths[expert] for expert in placement.everywhere)
    units = [placement.count_units(rank) + replica_units for rank in ranks]
    work = [sum(_share_work(placement, frequencies, rank)) for rank in ranks]
    memory = max(units) * placement.num_ranks / (sum(placement.widths) or 1)
    return Balance(memory, max(work) * len(work) / sum(work) if sum(work) else 1.0)


def list_work(placement: Placement, frequencies: Sequence[float]) -> list[float]:
    """Return the share of a layer's expert computing that falls to each process; the sum is 1."""
    work = [sum(_share_work(placement, frequencies, rank)) for rank in range(placement.num_ranks)]
    total = sum(work)
    return [each / total if total else 1 / len(work) for each in work]


class ExpertLoad(NamedTuple):
    """What the busiest process of a group has of the experts and tokens of all layers.

    Attributes:
        units: hidden units that it holds alone, of all, times the processes of the group.
        work: of a layer, hidden units times tokens, of all, times the processes; mean over layers, as all wait in each.
        rows: of a layer, that it sends to others or receives from them, for each token of its own; mean over layers.
        replicas: share of the hidden units that every process has.
    """

    units: float
    work: float
    rows: float
    replicas: float


# Of a placement that is not solved yet: as even as can be, and every token travels once.
EVEN_LOAD = ExpertLoad(1.0, 1.0, 1.0, 0.0)


def measure_load(
    placements: Sequence[Placement],
    probabilities_ZE: Sequence[Sequence[float]],
    fixed_count: int | None = None,
    by_pair: bool = False,
) -> ExpertLoad:
    """Return what the busiest process has.

    Args:
        placements: one for each layer.
        probabilities_ZE: that a token chooses each expert.
        fixed_count: experts that every token chooses, one independently of the other but for that; None: it varies.
        by_pair: whether a token travels for each of its experts (exact mode), not once to each process.
    """
    num_ranks, total = placements[0].num_ranks, sum(sum(placement.widths) for placement in placements)
    units = [sum(placement.count_units(rank) for placement in placements) for rank in range(num_ranks)]
    replicas = sum(placement.widths[expert] for placement in placements for expert in placement.everywhere)
    work, rows = 0.0, 0.0
    for placement, probabilities in zip(placements, probabilities_ZE, strict=True):
        work += measure_balance(placement, probabilities).compute / len(placements)
        needs = [
            _measure_need(placement, probabilities, rank, fixed_count, by_pair) for rank in range(num_ranks)
        ]
        # The most that one sends is to all others but the one that needs least; that one receives from all others.
        rows += max(sum(needs) - min(needs), (num_ranks - 1) * max(needs)) / len(placements)
    return ExpertLoad(max(units) * num_ranks / total, work, rows, replicas / total)


def _measure_need(
    placement: Placement, probabilities: Sequence[float], rank: int, fixed_count: int | None, by_pair: bool
) -> float:
    """Return how often a token travels to a process, in the mean."""
    own = {part.expert for part in placement.list_parts(rank)}
    if by_pair:
        return sum(probabilities[part.expert] for part in placement.list_parts(rank))
    others = [p for expert, p in enumerate(probabilities) if expert not in own]
    misses = math.prod(1 - min(1.0, probabilities[expert]) for expert in own)
    if fixed_count is not None:
        # Of all ways to choose so many, those without an expert of the process.
        every = _count_chosen(probabilities, fixed_count)
        misses = misses * _count_chosen(others, fixed_count) / every if every else misses
    return 1 - min(1.0, misses)


def _count_chosen(probabilities: Sequence[float], count: int) -> float:
    """Return the probability that exactly so many of some independent experts are chosen."""
    chosen = [1.0] + [0.0] * count
    for each in probabilities:
        p = min(1.0, each)
        for k in range(count, -1, -1):
            chosen[k] = chosen[k] * (1 - p) + (chosen[k - 1] * p if k else 0.0)
    return chosen[count]


def _share_work(placement: Placement, frequencies: Sequence[float], rank: int) -> Iterator[float]:
    for part in placement.list_parts(rank):
        yield frequencies[part.expert] * part.num_units
    for expert in placement.everywhere:  # each process computes its own tokens
        yield frequencies[expert] * placement.widths[expert] / placement.num_ranks


def place_contiguously(widths: Sequence[int], num_ranks: int) -> Placement:
    """Return the placement that other libraries have: as many experts on each process, in their order.

    Where the number does not divide, the first processes have one more.
    """
    size, num_larger = divmod(len(widths), num_ranks)
    border = num_larger * (size + 1)  # the first expert of a process that has one less
    ranks = [
        expert // (size + 1) if expert < border else num_larger + (expert - border) // size
        for expert in range(len(widths))
    ]
    parts = [ExpertPart(i, 0, width, rank) for i, (width, rank) in enumerate(zip(widths, ranks, strict=True))]
    return Placement(tuple(widths), num_ranks, tuple(parts))
