"""Where the experts of a run live: chosen when its model is built, and again when their load has changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.config.run import RunConfig
from hmoe.parallel.placement import Frequencies, choose_placements, keep_ranks, place_experts
from hmoe.runs.expert_shares import read_frequencies
from hmoe.runs.placement_log import read_placement_log
from hmoe.specs.placement import Balance, Placement, measure_balance
from hmoe.train.processes import Processes


def choose_again(
    config: RunConfig, placements: Sequence[Placement], loads_ZE: Frequencies
) -> list[Placement]:
    """Return placements for another load, in which as many hidden units as possible stay where they are.

    Experts that every process has stay so.
    """
    better = []
    for placement, load_E in zip(placements, loads_ZE, strict=True):
        new = place_experts(
            placement.widths, placement.num_ranks, load_E[: len(placement.widths)],
            cut=config.parallel.cut_experts, replicas=placement.everywhere,
        )  # fmt: skip
        better.append(keep_ranks(new, placement))
    return better


def recall_frequencies(run: Path, step: int, config: RunConfig, processes: Processes) -> Frequencies | None:
    """Return how often each expert of a run was chosen lately, where that decides who holds it; None: not known."""
    if step < 0 or processes.size == 1 or not config.parallel.places_experts:
        return None
    known: Frequencies | None = None
    with processes.together():
        if processes.rank == 0:
            known = read_frequencies(run, step)
    known = processes.broadcast(known)
    return known


def recall_placements(
    run: Path, step: int, config: RunConfig, processes: Processes
) -> list[Placement] | None:
    """Return where the experts of a run lived at a step, if they can live there again; None: not known.

    So a run that goes on with the same processes and keys has the bits of one that was not interrupted.
    """
    if step < 0 or processes.size == 1 or not config.parallel.places_experts:
        return None
    plain = None
    with processes.together():
        rows = read_placement_log(run, step) if processes.rank == 0 else []
        if rows and rows[-1].get("keys") == list_placement_keys(config, processes.size):
            plain = rows[-1]["placements"]
            # A row that was changed by hand may be of another model.
            moe = config.model.moe
            kinds = {(tuple(each["widths"]), each["num_ranks"]) for each in plain}
            num_ranks = config.parallel.expert_ranks or processes.size
            if (
                moe is None
                or len(plain) != len(config.model.moe_layers)
                or kinds != {(moe.expert_widths, num_ranks)}
            ):
                plain = None
    plain = processes.broadcast(plain)
    return None if plain is None else [Placement.from_plain(each) for each in plain]


def find_placements(
    run: Path, step: int, config: RunConfig, processes: Processes
) -> tuple[list[Placement] | None, Frequencies | None]:
    """Return where the experts of a run live from a step on, and how often each was chosen lately, if that is known.

    None for a run whose processes all have all experts.
    """
    frequencies_ZE = recall_frequencies(run, step, config, processes)
    placements = recall_placements(run, step, config, processes)
    if placements is None and config.parallel.places_experts and processes.size > 1:
        placements = choose_placements(config, processes.size, frequencies_ZE)
    return placements, frequencies_ZE


def list_placement_keys(config: RunConfig, num_processes: int) -> list[Any]:
    """Return what placements depend on beside the load."""
    parallel, moe = config.parallel, config.model.moe
    assert moe is not None
    keys = (parallel.expert_placement, parallel.expert_replicas, parallel.cut_experts)
    return [list(moe.expert_widths), parallel.expert_ranks or num_processes, *keys]


def is_worth_moving(before: Balance, after: Balance, gain: float) -> bool:
    """Return whether work or memory of the fullest process falls by a gain, and the larger of both does not rise."""
    falls = any(old > (1 + gain) * new for old, new in zip(before, after, strict=True))
    return falls and after.worst <= before.worst


class Replacement(NamedTuple):
    """Layers that are placed anew.

    Attributes:
        placements: of all layers.
        layers: numbers of those that change, among the layers with experts.
        before, after: work of the busiest process, divided by the mean; mean over those layers.
    """

    placements: list[Placement]
    layers: list[int]
    before: float
    after: float

    def describe(self, step: int) -> str:
        """Return a line on it."""
        return (
            f"step {step}: experts of {len(self.layers)} of {len(self.placements)} layers moved: the busiest process "
            f"had {self.before:.2f} times the mean work, now {self.after:.2f}"
        )


class LoadWatch:
    """Adds up which experts tokens choose, and tells when other placements would be worth the move.

    It looks every so many steps, at the steps since it looked last, and lets a layer be unless its busiest process
    would gain more than `parallel.replace_gain`: else a load that comes and goes would move experts to and fro.
    """

    def __init__(self, config: RunConfig, placements: Sequence[Placement]) -> None:
        self._config, self.placements = config, list(placements)
        self._num_pairs_ZE: list[list[int]] = []

    def add(self, num_pairs_ZE: Sequence[Sequence[int]]) -> None:
        """Take in the pairs of a step, those of all processes."""
        before = self._num_pairs_ZE or [[0] * len(row) for row in num_pairs_ZE]
        self._num_pairs_ZE = [
            [a + b for a, b in zip(*rows, strict=True)] for rows in zip(before, num_pairs_ZE, strict=True)
        ]

    def find_better(self) -> Replacement | None:
        """Return where experts should move, and begin to add up anew; None: they stay."""
        loads, self._num_pairs_ZE = self._num_pairs_ZE, []
        if not loads:
            return None
        now = self.placements
        wanted = choose_again(self._config, now, loads)
        gain = self._config.parallel.replace_gain
        placements, layers, ratios = list(now), [], []
        for layer, (old, new, load_E) in enumerate(zip(now, wanted, loads, strict=True)):
            before, after = (measure_balance(each, load_E[: len(each.widths)]) for each in (old, new))
            if is_worth_moving(before, after, gain):
                placements[layer] = new
                layers.append(layer)
                ratios.append((before.compute, after.compute))
        if not layers:
            return None
        means = [sum(values) / len(layers) for values in zip(*ratios, strict=True)]
        self.placements = placements
        return Replacement(placements, layers, *means)
