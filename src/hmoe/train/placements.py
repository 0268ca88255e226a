"""Where the experts of a run live: chosen when its model is built, and again when their load has changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hmoe.config.run import RunConfig
from hmoe.parallel.placement import Frequencies, keep_ranks, place_experts
from hmoe.runs.expert_shares import read_frequencies
from hmoe.specs.placement import Placement, measure_balance
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
    frequencies: Frequencies | None = processes.broadcast(read_frequencies(run, step))
    return frequencies


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
            if before.worst > (1 + gain) * after.worst:
                placements[layer] = new
                layers.append(layer)
                ratios.append((before.compute, after.compute))
        if not layers:
            return None
        means = [sum(values) / len(layers) for values in zip(*ratios, strict=True)]
        self.placements = placements
        return Replacement(placements, layers, *means)
