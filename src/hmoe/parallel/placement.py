"""Which expert lives where, so that memory and expected computing are even on all processes. Plain Python, no torch.

The paper (appendix D) puts large experts, which few tokens choose, and small ones, which many do, on the same device,
and gives no algorithm. Here each expert has a share of the memory, its width, and one of the work, width times tokens;
the largest share of a process, of either, becomes as small as it can. Where whole experts cannot be even, such as 8
on 4 processes, they are cut between hidden units (`hmoe.parallel.cuts`).
"""

from collections.abc import Sequence
from itertools import combinations
from numbers import Integral

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.parallel.cuts import cut_experts, split_experts
from hmoe.parallel.whole_experts import Portion, list_portions, place_whole_experts
from hmoe.specs.placement import (
    Balance,
    ExpertLoad,
    ExpertPart,
    Placement,
    measure_balance,
    measure_load,
    place_contiguously,
)

Frequencies = Sequence[Sequence[float]]  # how many of a token's choices fall to each expert, by MoE layer
# Times an even part: what whole experts may reach before any is cut.
EVEN_MEMORY, EVEN_COMPUTE = 1.01, 1.03


def place_experts(
    widths: Sequence[int],
    num_ranks: int,
    frequencies: Sequence[float] | None = None,
    *,
    cut: bool = False,
    replicas: int | Sequence[int] = 0,
) -> Placement:
    """Return where each expert of a layer lives, so that no process has much more than the others.

    Args:
        widths: hidden units of each expert.
        num_ranks: processes of the group.
        frequencies: how often each is activated, in any unit; None: all alike.
        cut: whether experts may be cut where whole ones cannot be even.
        replicas: which experts every process has, so that their tokens need not travel; a number: those with most
            tokens per hidden unit.

    Raises:
        ConfigError: for frequencies that do not fit, or numbers out of range.
    """
    chosen = _check(widths, num_ranks, frequencies, replicas)
    widths = [int(width) for width in widths]  # also of NumPy
    if isinstance(replicas, int):
        replicas = sorted(range(len(widths)), key=lambda i: (-chosen[i] / widths[i], i))[:replicas]
    everywhere = tuple(sorted(set(replicas)))
    rest = [i for i in range(len(widths)) if i not in everywhere]
    # Every process has the replicas, and a part of their tokens.
    shares = list_portions(widths, chosen)
    base = Portion(
        sum(shares[i].memory for i in everywhere), sum(shares[i].work for i in everywhere) / num_ranks
    )

    def make(units: Sequence[Sequence[int]]) -> Placement:
        return Placement(tuple(widths), num_ranks, tuple(_list_cut_parts(rest, units)), everywhere)

    ranks = place_whole_experts([shares[i] for i in rest], num_ranks, base)
    whole = make(
        [[widths[i] * (rank == r) for r in range(num_ranks)] for i, rank in zip(rest, ranks, strict=True)]
    )
    if not cut or is_even(measure_balance(whole, chosen)):
        return whole
    own_widths, own_frequencies = [widths[i] for i in rest], [chosen[i] for i in rest]
    for units in split_experts(own_widths, [shares[i] for i in rest], num_ranks, base):
        placement = make(units)
        if is_even(measure_balance(placement, chosen)):
            return placement
    return make(cut_experts(own_widths, own_frequencies, num_ranks))


def is_even(balance: Balance) -> bool:
    """Return whether memory and computing are so even that a cut would bring little."""
    return balance.memory <= EVEN_MEMORY and balance.compute <= EVEN_COMPUTE


def place_all_experts(
    widths: Sequence[int],
    num_ranks: int,
    frequencies_ZE: Sequence[Sequence[float]],
    *,
    cut: bool = False,
    replicas: int = 0,
) -> list[Placement]:
    """Return the placement of each layer, such that also the memory of all layers together is even.

    What a layer leaves uneven, the next ones make up for: which process is which is open in each.
    """
    placements, units = [], [0] * num_ranks
    solved: dict[tuple[float, ...], Placement] = {}  # most plans have the same load in all layers
    for frequencies in frequencies_ZE:
        key = tuple(frequencies)
        if key not in solved:
            solved[key] = place_experts(widths, num_ranks, frequencies, cut=cut, replicas=replicas)
        placement = solved[key]
        by_size = sorted(range(num_ranks), key=lambda rank: -placement.count_units(rank))
        by_room = sorted(range(num_ranks), key=lambda rank: units[rank])
        new_ranks = dict(zip(by_size, by_room, strict=True))
        placements.append(rename_ranks(placement, new_ranks))
        for rank in range(num_ranks):
            units[new_ranks[rank]] += placement.count_units(rank)
    return placements


def keep_ranks(placement: Placement, before: Placement) -> Placement:
    """Return the same placement with such numbers of its processes that many hidden units stay where they were.

    No fewer than with the numbers as they are, nor than if any two of them changed places.
    """
    ranks = range(placement.num_ranks)
    kept = {(new, old): 0 for new in ranks for old in ranks}
    parts: dict[int, list[ExpertPart]] = {}
    for part in before.parts:
        parts.setdefault(part.expert, []).append(part)
    for part in placement.parts:
        for old in parts.get(part.expert, []):
            end = min(part.first_unit + part.num_units, old.first_unit + old.num_units)
            kept[part.rank, old.rank] += max(0, end - max(part.first_unit, old.first_unit))
    # Beginning with the numbers as they are, two change places as long as more stays.
    new_ranks = list(ranks)
    is_better = True
    while is_better:
        is_better = False
        for a, b in combinations(ranks, 2):
            now = kept[a, new_ranks[a]] + kept[b, new_ranks[b]]
            if kept[a, new_ranks[b]] + kept[b, new_ranks[a]] > now:
                new_ranks[a], new_ranks[b] = new_ranks[b], new_ranks[a]
                is_better = True
    return rename_ranks(placement, new_ranks)


def rename_ranks(placement: Placement, new_ranks: dict[int, int] | Sequence[int]) -> Placement:
    """Return the same placement with other numbers of its processes."""
    parts = tuple(part._replace(rank=new_ranks[part.rank]) for part in placement.parts)
    return Placement(placement.widths, placement.num_ranks, parts, placement.everywhere)


def _check(
    widths: Sequence[int],
    num_ranks: int,
    frequencies: Sequence[float] | None,
    replicas: int | Sequence[int],
) -> list[float]:
    """Return the frequencies, the largest 1, or raise ConfigError."""
    chosen = [1.0] * len(widths) if frequencies is None else [float(each) for each in frequencies]
    if len(chosen) != len(widths):
        raise ConfigError(
            f"placement: {len(chosen)} frequencies for {len(widths)} experts; must be one for each"
        )
    for expert, frequency in enumerate(chosen):
        if not 0 <= frequency < float("inf"):
            raise ConfigError(
                f"placement: expert {expert} has frequency {frequency}, must be 0 or more; nearest is 0"
            )
    if not all(isinstance(width, Integral) and width >= 1 for width in widths):
        raise ConfigError(f"placement: widths = {tuple(widths)}, must be integers of 1 hidden unit or more")
    if num_ranks < 1:
        raise ConfigError(f"placement: {num_ranks} processes, must be 1 or more; nearest is 1")
    if isinstance(replicas, int) and not 0 <= replicas <= len(widths):
        nearest = min(max(replicas, 0), len(widths))
        raise ConfigError(
            f"placement: replicas = {replicas}, must be from 0 to {len(widths)}, the experts; nearest is {nearest}"
        )
    if not isinstance(replicas, int) and not set(replicas) <= set(range(len(widths))):
        raise ConfigError(f"placement: replicas = {replicas}, must be numbers of the {len(widths)} experts")
    most = max(chosen, default=0.0)
    return [each / most for each in chosen] if most else [1.0] * len(widths)


def _list_cut_parts(experts: Sequence[int], units: Sequence[Sequence[int]]) -> list[ExpertPart]:
    """Return the parts of experts, given how many units of each go to each process."""
    parts = []
    for expert, of_expert in zip(experts, units, strict=True):
        first = 0
        for rank, size in enumerate(of_expert):
            if size:
                parts.append(ExpertPart(expert, first, size, rank))
            first += size
    return parts


def assume_frequencies(config: RunConfig) -> list[list[float]]:
    """Return how often a uniform router chooses each expert of a run, zero-computation ones included."""
    moe = config.model.moe
    assert moe is not None
    num_experts = len(moe.routed_widths)
    _, per_token, _ = moe.router.count_experts_per_token(num_experts)
    return [[per_token / num_experts] * num_experts] * len(config.model.moe_layers)


def measure_run_load(
    config: RunConfig,
    num_processes: int,
    frequencies_ZE: Frequencies | None = None,
    placements: Sequence[Placement] | None = None,
) -> ExpertLoad | None:
    """Return what the busiest process of a run would have; None where all experts live in every process.

    Args:
        config: of the run.
        num_processes: of the run.
        frequencies_ZE: how many of a token's choices fall to each expert; None: a uniform router's.
        placements: of each layer; None: those that the run would have.
    """
    moe = config.model.moe
    if moe is None or not config.parallel.places_experts or num_processes == 1:
        return None
    placements = placements or choose_placements(config, num_processes, frequencies_ZE)
    fewest, _, most = moe.router.count_experts_per_token(len(moe.routed_widths))
    frequencies_ZE = frequencies_ZE or assume_frequencies(config)
    return measure_load(placements, frequencies_ZE, most if fewest == most else None, config.parallel.exact)


def choose_placements(
    config: RunConfig, num_processes: int, frequencies_ZE: Frequencies | None = None
) -> list[Placement]:
    """Return the placement of each layer with experts.

    Args:
        config: of a run that places experts.
        num_processes: of the run.
        frequencies_ZE: how often each expert is chosen, zero-computation ones included; None: all alike.
    """
    parallel, moe = config.parallel, config.model.moe
    assert moe is not None  # checked by `check_processes`
    widths, num_ranks = moe.expert_widths, parallel.expert_ranks or num_processes
    if parallel.expert_placement == "contiguous":
        return [place_contiguously(widths, num_ranks)] * len(config.model.moe_layers)
    frequencies_ZE = frequencies_ZE or [[1.0] * len(widths)] * len(config.model.moe_layers)
    return place_all_experts(
        widths, num_ranks, [frequencies_E[: len(widths)] for frequencies_E in frequencies_ZE],
        cut=parallel.cut_experts, replicas=parallel.expert_replicas,
    )  # fmt: skip
