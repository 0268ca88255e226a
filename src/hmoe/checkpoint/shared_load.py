"""Checkpoints on disk whose tensors several processes read, each its rows, whoever wrote them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hmoe.checkpoint.manifest import (
    Manifest,
    list_checkpoint_steps,
    locate_checkpoint,
    read_state,
    verify_checkpoint,
)
from hmoe.checkpoint.pieces import PARTS, TensorFiles, TensorHash, digest_hashes
from hmoe.checkpoint.store import list_listed_files, remove_litter, set_aside
from hmoe.errors import CheckpointError, PeerError


class Writers(Protocol):
    """The processes that share a checkpoint (`hmoe.parallel.ranks.Ranks`)."""

    rank: int
    size: int

    def broadcast(self, value: Any) -> Any:
        """Return the JSON value of the first process."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which an error of one process is one of all."""
        ...


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk whose bytes were verified and whose tensors are read row by row.

    Attributes:
        folder: where it lies.
        manifest: of its files.
        state: counters, config and fingerprints as plain JSON values.
    """

    folder: Path
    manifest: Manifest
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Training steps taken."""
        step: int = self.state["step"]
        return step

    def open_tensors(self) -> dict[str, TensorFiles]:
        """Return the tensors, by part of the state: model, optimizer."""
        names = list_listed_files(self.folder, self.manifest)
        return {part: TensorFiles(self.folder, files) for part, files in names.items()}

    def check_hashes(self, hashes: Mapping[str, TensorHash]) -> None:
        """Raise CheckpointError unless what all processes have taken is what was saved, each row in its place.

        A checkpoint of one process has another digest, and is known by its files alone.
        """
        if f"{PARTS[0]}.safetensors" in self.manifest.files:
            return
        if digest_hashes(self.state, hashes) != self.manifest.digest:
            raise CheckpointError(
                f"{self.folder}: the digest of its tensors differs from the manifest; "
                "rename it to go on from the one before"
            )


def find_newest_checkpoint(
    run: Path, writers: Writers, say: Callable[[str], None]
) -> StoredCheckpoint | None:
    """Return the newest checkpoint that verifies, each process reading a part of the files; None: never written.

    A bad one is named, renamed to `*.corrupt`, and the next older is tried, as by `load_newest_checkpoint`.

    Raises:
        CheckpointError: if checkpoints were written and none can be trusted.
    """
    reason = ""
    with writers.together():
        if writers.rank == 0:
            remove_litter(run / "checkpoints")
    for step in writers.broadcast(list_checkpoint_steps(run)):
        folder = locate_checkpoint(run, step)
        try:
            with writers.together():
                manifest = verify_checkpoint(folder, (writers.rank, writers.size))
                stored = StoredCheckpoint(folder, manifest, read_state(folder))
            with writers.together():  # not before others have checked the rest
                stored.open_tensors()
            return stored
        except (CheckpointError, PeerError) as error:
            if error.exit_code != CheckpointError.exit_code:
                raise  # such as too few file handles: the checkpoint may be good
            reason = str(error)
            say(f"{reason}; falling back to the checkpoint before it")
            with writers.together():
                if writers.rank == 0:
                    set_aside(folder)
    with writers.together():
        corrupt = [path.name for path in (run / "checkpoints").glob("*.corrupt*")]
        if corrupt:
            reason = reason or f"{corrupt[0]}: set aside as corrupt earlier"
            raise CheckpointError(
                f"{run}: no checkpoint can be trusted ({reason}); start again in another run folder"
            )
    return None
