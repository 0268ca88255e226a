"""Where the state of a run is kept, and how it comes back: the checkpoints of one process, or of several."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from hmoe.checkpoint.shared_load import StoredCheckpoint, find_newest_checkpoint
from hmoe.checkpoint.shared_save import SharedSaver
from hmoe.checkpoint.state import Checkpoint, capture_state, restore_state
from hmoe.checkpoint.store import load_newest_checkpoint, save_checkpoint
from hmoe.model.transformer import Transformer
from hmoe.parallel.offload import ExpertOffload
from hmoe.train.processes import Processes

Restored = Checkpoint | StoredCheckpoint


class Saver(Protocol):
    """Publishes the checkpoints of a run.

    Attributes:
        failed: whether this process could not write; `finish` raises the error.
    """

    @property
    def failed(self) -> bool:
        """Whether this process could not write; `finish` raises the error."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Publish a checkpoint of the run as it is now, or begin to."""

    def finish(self) -> None:
        """Wait until all are published."""

    def abandon(self) -> None:
        """End what is being published, soon: training ends with an error."""


def load_restart(run: Path, processes: Processes, say: Callable[[str], None]) -> Restored | None:
    """Return the newest checkpoint that can be trusted, None if none was ever written.

    One process reads it whole; of several each reads its rows, later.

    Raises:
        CheckpointError: if checkpoints were written and none can be trusted.
    """
    if processes.size == 1:
        return load_newest_checkpoint(run, quarantine=True, say=say)
    return find_newest_checkpoint(run, processes, say)


def restore_run(
    restored: Restored,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    offload: ExpertOffload | None = None,
) -> None:
    """Put the weights and moments of a checkpoint into a model and its optimiser.

    Raises:
        CheckpointError: if it belongs to another model.
    """
    homes = None if offload is None else offload.moments
    with contextlib.nullcontext() if offload is None else offload.look_at_all(changes=True):
        if isinstance(restored, Checkpoint):
            restore_state(restored, model, optimizer, homes)
            return
        from hmoe.parallel.pieces import restore_pieces  # noqa: PLC0415 - one process needs no engine, slow to import

        restore_pieces(restored, model, optimizer, cast(Any, processes), homes)


class _OneSaver:
    """Publishes checkpoints of one process, before training goes on."""

    failed = False

    def __init__(self, run: Path, keep: int, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
        self._run, self._keep, self._model, self._optimizer = run, keep, model, optimizer

    def save(self, step: int, state: dict[str, Any]) -> None:
        save_checkpoint(self._run, capture_state(step, self._model, self._optimizer, state), self._keep)

    def finish(self) -> None:
        """Do nothing: nothing is left to be done."""

    def abandon(self) -> None:
        """Do nothing: nothing is left to be done."""


class _ManySaver:
    """Publishes checkpoints of several processes while training goes on: it waits for the copy of the state only.

    Experts that lie elsewhere are not copied, and training waits until they are written. Nothing is saved of which
    processes hold different copies.
    """

    def __init__(
        self,
        shared: SharedSaver,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        ranks: Any,
        copies: bool,
    ) -> None:
        self._shared, self._model, self._optimizer, self._copies = shared, model, optimizer, copies
        self._ranks = ranks

    @property
    def failed(self) -> bool:
        return self._shared.failed

    def save(self, step: int, state: dict[str, Any]) -> None:
        # One process needs no engine, which is slow to import.
        from hmoe.parallel.copies import check_copies  # noqa: PLC0415
        from hmoe.parallel.pieces import cut_pieces  # noqa: PLC0415

        self._shared.finish()  # before another copy of the state is made
        check_copies(self._model, self._optimizer, self._ranks, step)
        self._shared.save(step, cut_pieces(self._model, self._optimizer, self._copies), state)
        if not self._copies:
            self._shared.finish()

    def finish(self) -> None:
        self._shared.finish()

    def abandon(self) -> None:
        self._shared.abandon()


def make_saver(
    run: Path,
    keep: int,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    copies: bool = True,
) -> Saver:
    """Return what publishes the checkpoints of a run; without copies training waits until they are written."""
    if processes.size == 1:
        return _OneSaver(run, keep, model, optimizer)
    return _ManySaver(SharedSaver(run, keep, processes), model, optimizer, processes, copies)
