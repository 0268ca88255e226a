"""The checkpoints of a run folder: published whole, verified before use, the newest few kept, without pickle.

    checkpoints/step-00000010/{model.safetensors, optimizer.safetensors, state.json, MANIFEST.json}

Several processes write files of their own in place of the first two (`hmoe.checkpoint.shared_save`).

A checkpoint appears by one rename after everything in it was flushed to disk, is never changed afterwards, and
holds no times, hosts or paths, so equal runs write equal bytes. It is verified whole before any weight is used.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from hmoe.checkpoint.manifest import (
    MANIFEST,
    STATE_FILE,
    Manifest,
    list_checkpoint_names,
    list_checkpoint_steps,
    locate_checkpoint,
    raise_shortage,
    verify_checkpoint,
    write_manifest,
)
from hmoe.checkpoint.pieces import list_tensor_files
from hmoe.checkpoint.state import (
    MODEL_FILE,
    Checkpoint,
    digest_shared_state,
    digest_state,
    read_checkpoint_files,
    write_checkpoint_files,
)
from hmoe.errors import CheckpointError
from hmoe.storage import flush_to_disk


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Publish a checkpoint, verify it, then remove all but the newest `keep`; return its folder.

    Raises:
        CheckpointError: if it cannot be written; earlier ones are untouched and nothing is left behind.
    """
    final = locate_checkpoint(run, checkpoint.step)
    if final.exists():
        raise CheckpointError(f"{final}: exists already and is never rewritten")
    try:
        _publish(final, checkpoint)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in [*checkpoint.model.values(), *checkpoint.optimizer.values()])
        free = shutil.disk_usage(run).free
        raise CheckpointError(
            f"{final}: cannot be written: {error} (needs about {needed} bytes, {free} bytes free); "
            "earlier ones are intact"
        ) from None
    # Read back before anything older goes: a disk that lies about a write must not cost the last good one.
    verify_checkpoint(final)
    prune_checkpoints(run, keep)
    return final


def load_newest_checkpoint(
    run: Path, quarantine: bool, say: Callable[[str], None], optimizer: bool = True
) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None if none was ever written.

    A bad one is named by `say`, and the next older is tried. With `quarantine`, for who writes the folder, it is also
    renamed to `*.corrupt`, and what a killed process left half done is removed.
    Without `optimizer` its tensors are verified but not loaded.

    Raises:
        CheckpointError: if checkpoints were written and none can be trusted.
    """
    folder = run / "checkpoints"
    if quarantine:
        remove_litter(folder)
    corrupt = [name for name in list_checkpoint_names(run) if ".corrupt" in name]
    reasons = [f"{folder / name}: set aside as corrupt earlier" for name in corrupt]
    for step in list_checkpoint_steps(run):
        try:
            return load_checkpoint(locate_checkpoint(run, step), optimizer)
        except CheckpointError as error:
            reasons.append(str(error))
            say(f"{error}; falling back to the checkpoint before it")
            if quarantine:
                set_aside(locate_checkpoint(run, step))
    if reasons:
        raise CheckpointError(
            f"{run}: no checkpoint can be trusted ({reasons[-1]}); start again in another run folder"
        )
    return None


def load_checkpoint(folder: Path, optimizer: bool = True) -> Checkpoint:
    """Verify every byte of a checkpoint, then load it, and check the digest of what was loaded.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    manifest = verify_checkpoint(folder)
    tensor_files = list_listed_files(folder, manifest)
    try:
        checkpoint = read_checkpoint_files(folder, manifest.files, optimizer)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        if isinstance(error, OSError):
            raise_shortage(error)
        raise CheckpointError(f"{folder}: cannot be read: {str(error)[:200]}") from None
    if folder.name != locate_checkpoint(folder, checkpoint.step).name:
        raise CheckpointError(f"{folder}: holds step {checkpoint.step}")
    digest = digest_shared_state if MODEL_FILE not in tensor_files["model"] else digest_state
    if optimizer and digest(checkpoint) != manifest.digest:
        raise CheckpointError(f"{folder}: the digest of its tensors differs from the manifest")
    return checkpoint


def list_listed_files(folder: Path, manifest: Manifest) -> dict[str, list[str]]:
    """Return the files with tensors that a manifest lists, by part of the state.

    Raises:
        CheckpointError: if one is missing that every checkpoint has.
    """
    if STATE_FILE not in manifest.files:
        raise CheckpointError(f"{folder / MANIFEST}: lists no {STATE_FILE}, which every checkpoint has")
    try:
        return list_tensor_files(manifest.files)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error}") from None


def _publish(final: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under a hidden name, flush it, and rename it; leave nothing behind if that fails."""
    folder = final.parent
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        remove_litter(folder)
        temporary.mkdir()
        write_checkpoint_files(temporary, checkpoint)
        for name in write_manifest(temporary, digest_state(checkpoint)):
            flush_to_disk(temporary / name)
        rename_durably(temporary, final)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_litter(folder: Path) -> None:
    """Remove what a process left in a folder of checkpoints that was killed while it wrote or deleted."""
    for litter in folder.glob(".step-*"):
        shutil.rmtree(litter, ignore_errors=True)


def rename_durably(temporary: Path, final: Path) -> None:
    """Give a folder, whose files are on disk, its name."""
    # The entries of a folder must be on disk before its name, and its name before anybody relies on it.
    flush_to_disk(temporary)
    temporary.rename(final)
    flush_to_disk(final.parent)


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for step in list_checkpoint_steps(run)[keep:]:
        hidden = run / "checkpoints" / f".step-{step:08d}.old"
        locate_checkpoint(run, step).rename(hidden)  # a kill while deleting must not leave half a checkpoint
        shutil.rmtree(hidden)


def set_aside(folder: Path) -> None:
    """Rename a checkpoint that cannot be trusted, so that nobody reads it again."""
    attempt = 0
    while (target := folder.with_name(f"{folder.name}.corrupt{attempt or ''}")).exists():
        attempt += 1
    os.rename(folder, target)
