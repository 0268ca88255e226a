"""Experts of a run in training that move to other processes when their load has changed."""

from pathlib import Path
from typing import Any

import torch

from hmoe.config.run import RunConfig
from hmoe.model.transformer import Transformer
from hmoe.parallel.expert_parallel import list_dispatched
from hmoe.parallel.placement import Frequencies
from hmoe.parallel.ranks import Ranks
from hmoe.parallel.replacement import move_experts
from hmoe.runs.placement_log import write_placement_row
from hmoe.specs.placement import measure_balance
from hmoe.train.placements import LoadWatch, Replacement, list_placement_keys
from hmoe.train.shared_run import adopt_model
from hmoe.train.step import StepRecord


class ExpertMover:
    """Watches the load of a run's experts, moves them when that pays, and writes down where they live.

    Attributes:
        pending: a move of experts that several processes share: the engine cannot take them out of a model, so it waits
            for a checkpoint (`hmoe.train.rebuild`).
    """

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        self._config, self._run, self._ranks = config, run, ranks
        self._model, self._optimizer = model, optimizer
        self.pending: Replacement | None = None
        self._watch = LoadWatch(config, [experts.placement for experts in list_dispatched(model)])

    def begin(self, step: int, frequencies_ZE: Frequencies | None) -> None:
        """Write down where the experts live when training begins or goes on."""
        placements = self._watch.placements
        work = None
        if frequencies_ZE is not None:
            each = [
                measure_balance(p, s[: len(p.widths)]).compute
                for p, s in zip(placements, frequencies_ZE, strict=True)
            ]
            work = sum(each) / len(each)
        self._write(
            step, {"layers": list(range(len(placements))), "before": None, "after": work, "sent_bytes": 0}
        )

    def take_step(self, record: StepRecord, step: int) -> str | None:
        """Count a step's load, and move experts if it is time to look and worth it; return a line on that."""
        every = self._config.parallel.replace_every
        # While a move waits for a checkpoint, none is looked for.
        if not every or not record.applied or self.pending is not None:
            return None
        self._watch.add(record.num_pairs_ZE)
        if step % every:
            return None
        better = self._watch.find_better()
        if better is None:
            return None
        if self._config.parallel.expert_ranks not in (None, self._ranks.size):
            self.pending = better
            return None
        sent = move_experts(self._model, self._optimizer, better.placements, self._ranks.gather_values)
        adopt_model(self._config, self._ranks, self._model)
        self.write_move(step, better, sum(self._ranks.gather_values(sent)))
        return better.describe(step)

    def write_move(self, step: int, better: Replacement, num_bytes: int) -> None:
        """Write down where experts live from a step on."""
        values = {"layers": better.layers, "before": better.before, "after": better.after}
        self._write(step, {**values, "sent_bytes": num_bytes})

    def _write(self, step: int, values: dict[str, Any]) -> None:
        with self._ranks.together():
            if self._ranks.rank == 0:
                keys = list_placement_keys(self._config, self._ranks.size)
                row = {"step": step, "processes": self._ranks.size, "keys": keys, **values}
                write_placement_row(self._run, row, self._watch.placements)
