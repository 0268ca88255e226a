"""Which expert lives where, so that memory and expected computing are even on all processes. Plain Python, no torch.

The paper (appendix D) puts large experts, which few tokens choose, and small ones, which many do, on the same device,
and gives no algorithm. Here each expert has a share of the memory, its width, and one of the work, width times tokens;
the largest share of a process, of either, becomes as small as it can. Where whole experts cannot be even, such as 8
on 4 processes, they are cut between hidden units (`hmoe.parallel.cuts`).
"""

from collections.abc import Sequence

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.parallel.cuts import cut_experts
from hmoe.parallel.whole_experts import Shares, place_whole_experts
from hmoe.specs.placement import ExpertPart, Placement, measure_balance, place_contiguously

Frequencies = Sequence[Sequence[float]]  # how many of a token's choices fall to each expert, by MoE layer
CUT_ABOVE = 1.02  # times even: what whole experts may reach before any is cut


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
    chosen = _check(widths, num_ranks, frequencies, replicas if isinstance(replicas, int) else len(replicas))
    if isinstance(replicas, int):
        replicas = sorted(range(len(widths)), key=lambda i: (-chosen[i] / widths[i], i))[:replicas]
    everywhere = tuple(sorted(replicas))
    rest = [i for i in range(len(widths)) if i not in everywhere]
    ranks = place_whole_experts(_list_shares([widths[i] for i in rest], [chosen[i] for i in rest]), num_ranks)
    parts = [ExpertPart(i, 0, widths[i], rank) for i, rank in zip(rest, ranks, strict=True)]
    whole = Placement(tuple(widths), num_ranks, tuple(parts), everywhere)
    if not cut or measure_balance(whole, chosen).worst <= CUT_ABOVE:
        return whole
    units = cut_experts([widths[i] for i in rest], [chosen[i] for i in rest], num_ranks)
    return Placement(tuple(widths), num_ranks, tuple(_list_cut_parts(rest, units)), everywhere)


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
    for frequencies in frequencies_ZE:
        placement = place_experts(widths, num_ranks, frequencies, cut=cut, replicas=replicas)
        by_size = sorted(range(num_ranks), key=lambda rank: -placement.count_units(rank))
        by_room = sorted(range(num_ranks), key=lambda rank: units[rank])
        new_ranks = dict(zip(by_size, by_room, strict=True))
        placements.append(rename_ranks(placement, new_ranks))
        for rank in range(num_ranks):
            units[new_ranks[rank]] += placement.count_units(rank)
    return placements


def keep_ranks(placement: Placement, before: Placement) -> Placement:
    """Return the same placement with such numbers of its processes that most hidden units stay where they were."""
    ranks = range(placement.num_ranks)
    kept = {(new, old): 0 for new in ranks for old in ranks}
    parts: dict[int, list[ExpertPart]] = {}
    for part in before.parts:
        parts.setdefault(part.expert, []).append(part)
    for part in placement.parts:
        for old in parts.get(part.expert, []):
            end = min(part.first_unit + part.num_units, old.first_unit + old.num_units)
            kept[part.rank, old.rank] += max(0, end - max(part.first_unit, old.first_unit))
    new_ranks: dict[int, int] = {}
    taken: set[int] = set()
    for rank, old_rank in sorted(kept, key=lambda pair: (-kept[pair], pair[0] != pair[1], pair)):
        if rank not in new_ranks and old_rank not in taken:
            new_ranks[rank] = old_rank
            taken.add(old_rank)
    return rename_ranks(placement, new_ranks)


def rename_ranks(placement: Placement, new_ranks: dict[int, int] | Sequence[int]) -> Placement:
    """Return the same placement with other numbers of its processes."""
    parts = tuple(part._replace(rank=new_ranks[part.rank]) for part in placement.parts)
    return Placement(placement.widths, placement.num_ranks, parts, placement.everywhere)


def _check(
    widths: Sequence[int], num_ranks: int, frequencies: Sequence[float] | None, replicas: int
) -> list[float]:
    """Return the frequencies, or raise ConfigError."""
    chosen = [1.0] * len(widths) if frequencies is None else [float(each) for each in frequencies]
    if len(chosen) != len(widths):
        raise ConfigError(f"placement: {len(chosen)} frequencies for {len(widths)} experts")
    for expert, frequency in enumerate(chosen):
        if not 0 <= frequency < float("inf"):
            raise ConfigError(f"placement: expert {expert} has frequency {frequency}, must be 0 or more")
    if min(widths, default=0) < 1:
        raise ConfigError(f"placement: widths = {tuple(widths)}, must be experts of 1 hidden unit or more")
    if num_ranks < 1:
        raise ConfigError(f"placement: {num_ranks} processes, must be 1 or more")
    if not 0 <= replicas <= len(widths):
        raise ConfigError(f"placement: replicas = {replicas}, must be from 0 to {len(widths)}, the experts")
    return chosen if sum(chosen) else [1.0] * len(widths)


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


def _list_shares(widths: Sequence[int], frequencies: Sequence[float]) -> list[Shares]:
    """Return the share of memory and of work that falls to each expert."""
    memory, work = sum(widths), sum(f * h for f, h in zip(frequencies, widths, strict=True)) or 1.0
    return [Shares(h / memory, f * h / work) for f, h in zip(frequencies, widths, strict=True)]


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
