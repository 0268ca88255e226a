"""The files of a checkpoint and the SHA-256 manifest that binds them; no torch, so a config is compared at once."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError
from hmoe.storage import sha256

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "MANIFEST.json"
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def list_steps(run: Path) -> list[int]:
    """Steps of the published checkpoints, newest first."""
    names = [name.removeprefix("step-") for name in list_checkpoints(run) if name.startswith("step-")]
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    return [step for step in steps if checkpoint_folder(run, step).is_dir()]


def list_checkpoints(run: Path) -> list[str]:
    """Names in the folder of checkpoints; a folder that cannot be listed is an error, not an empty one."""
    try:
        return sorted(os.listdir(run / "checkpoints"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def verify(folder: Path) -> str:
    """Check every byte of a checkpoint; returns the digest of its logical state.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    try:
        manifest = _read_manifest(folder)
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))  # desktops leave those
        if names != sorted([*FILES, MANIFEST]):
            raise CheckpointError(
                f"{folder}: holds {', '.join(names)}; must hold exactly {', '.join([*FILES, MANIFEST])}"
            )
        for name in FILES:
            _check_file(folder, name, manifest)
    except OSError as error:
        raise_shortage(error)
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None
    return str(manifest["digest"])


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, verified by the manifest; its tensors are not read.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    try:
        _check_file(folder, "state.json", _read_manifest(folder))
        state: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
        if folder.name != checkpoint_folder(folder, state["step"]).name:
            raise CheckpointError(f"{folder}: holds step {state['step']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None
    return state


def newest_state(run: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint whose state verifies, None if there is none."""
    for step in list_steps(run):
        try:
            return read_state(checkpoint_folder(run, step))
        except CheckpointError:
            continue  # named where the checkpoint itself is read
    return None


def raise_shortage(error: OSError) -> None:
    """Pass an error on that says nothing about the files: a process without handles or memory damages no checkpoint."""
    if error.errno in _SHORTAGES:
        raise error


def encode_json(tree: dict[str, Any]) -> bytes:
    """JSON whose bytes depend on the values only."""
    return (json.dumps(tree, sort_keys=True, indent=1) + "\n").encode()


def write_manifest(folder: Path, digest: str) -> None:
    """Write the manifest of the files that lie in a folder; its own hash makes a flip in it visible too."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in FILES}
    manifest: dict[str, Any] = {"digest": digest, "files": files}
    manifest["manifest_sha256"] = hashlib.sha256(encode_json(manifest)).hexdigest()
    (folder / MANIFEST).write_bytes(encode_json(manifest))


def _check_file(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    if sha256(folder / name) != manifest["files"][name]["sha256"]:
        raise CheckpointError(f"{folder / name}: SHA-256 differs from the manifest")


def _read_manifest(folder: Path) -> dict[str, Any]:
    content = (folder / MANIFEST).read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(content)
        own = manifest.pop("manifest_sha256")
        whole = encode_json({**manifest, "manifest_sha256": own}) == content
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{folder / MANIFEST}: damaged") from None
    if not whole or own != hashlib.sha256(encode_json(manifest)).hexdigest():
        raise CheckpointError(f"{folder / MANIFEST}: damaged, its own SHA-256 differs")
    return manifest
