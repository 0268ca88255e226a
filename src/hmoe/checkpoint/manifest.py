"""Which files a checkpoint consists of, and the SHA-256 manifest that binds them.

    MANIFEST.json: {"digest": ..., "files": {NAME: {"bytes": ..., "sha256": ...}}, "manifest_sha256": ...}

The manifest lists whatever lies in the folder; the digest is that of the logical state. A checkpoint is damaged if
a listed file differs or is missing, or if another lies there. No torch is imported, so that a recipe that does not
fit a run is refused at once.
"""

import errno
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.errors import CheckpointError
from hmoe.storage import hash_file, read_json

MANIFEST, STATE_FILE = "MANIFEST.json", "state.json"
_SHOWN_NAMES = 4
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class ManifestEntry:
    """What the manifest says of one file: its size in bytes, and its SHA-256 in hexadecimal."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint by name, and the digest of the logical state that they hold."""

    digest: str
    files: dict[str, ManifestEntry]


def locate_checkpoint(run: Path, step: int) -> Path:
    """Return the folder where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def list_checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of the published checkpoints, newest first."""
    names = [name.removeprefix("step-") for name in list_checkpoint_names(run) if name.startswith("step-")]
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    return [step for step in steps if locate_checkpoint(run, step).is_dir()]


def list_checkpoint_names(run: Path) -> list[str]:
    """Return the sorted names in a run's folder of checkpoints, [] where there is none.

    Raises:
        OSError: if it cannot be listed; a folder that cannot be listed is no empty one.
    """
    try:
        return sorted(os.listdir(run / "checkpoints"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def verify_checkpoint(folder: Path, share: tuple[int, int] = (0, 1)) -> Manifest:
    """Check every byte of a checkpoint, and return its manifest.

    Args:
        folder: of the checkpoint.
        share: (rank, size) of a process whose others check the rest; each checks every file of its own.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    rank, size = share
    try:
        manifest = _read_manifest(folder)
        names, expected = _list_files(folder), sorted({*manifest.files, MANIFEST})
        if names != expected:
            raise CheckpointError(
                f"{folder}: {describe_names(names, expected)}; must hold exactly what {MANIFEST} lists"
            )
        for name in sorted(manifest.files)[rank::size]:
            _check_file(folder, name, manifest)
    except OSError as error:
        raise_shortage(error)
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None
    return manifest


def describe_names(held: Collection[str], expected: Collection[str]) -> str:
    """Return in words which names are missing, and which are there besides, the first few of each."""
    parts = []
    for word, names in (
        ("lacks", set(expected).difference(held)),
        ("also holds", set(held).difference(expected)),
    ):
        first = sorted(names)[:_SHOWN_NAMES]
        more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
        parts += [f"{word} {', '.join(first)}{more}"] if names else []
    return "; ".join(parts)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a checkpoint, verified by the manifest; its tensors are neither read nor checked.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    try:
        _check_file(folder, STATE_FILE, _read_manifest(folder))
        state: dict[str, Any] = read_json(folder / STATE_FILE)
        if folder.name != locate_checkpoint(folder, state["step"]).name:
            raise CheckpointError(f"{folder}: holds step {state['step']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError):
            raise_shortage(error)
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None
    return state


def read_newest_state(run: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint whose state verifies, None if there is none."""
    for step in list_checkpoint_steps(run):
        try:
            return read_state(locate_checkpoint(run, step))
        except CheckpointError:
            continue  # named where the checkpoint itself is read
    return None


def raise_shortage(error: OSError) -> None:
    """Raise the error again if it is about the process, without handles or memory, not about the files."""
    if error.errno in _SHORTAGES:
        raise error


def encode_json(tree: dict[str, Any]) -> bytes:
    """Encode plain values as JSON whose bytes depend on the values only."""
    return (json.dumps(tree, sort_keys=True, indent=1) + "\n").encode()


def measure_file(file: Path) -> ManifestEntry:
    """Return what a manifest says of a file."""
    return ManifestEntry(file.stat().st_size, hash_file(file))


def write_manifest(folder: Path, digest: str, known: Mapping[str, ManifestEntry] | None = None) -> list[str]:
    """Write the manifest of all files that lie in a folder; return their names, the manifest's own last.

    Args:
        folder: of the checkpoint.
        digest: of its logical state.
        known: entries of files that were measured already.
    """
    names, known = _list_files(folder), known or {}
    entries = {name: known.get(name) or measure_file(folder / name) for name in names}
    files = {name: {"bytes": entry.num_bytes, "sha256": entry.sha256} for name, entry in entries.items()}
    manifest: dict[str, Any] = {"digest": digest, "files": files}
    # The manifest's own hash makes a flip in it visible too.
    manifest["manifest_sha256"] = hashlib.sha256(encode_json(manifest)).hexdigest()
    (folder / MANIFEST).write_bytes(encode_json(manifest))
    return [*names, MANIFEST]


def _list_files(folder: Path) -> list[str]:
    # Desktops leave hidden files, which are nobody's damage.
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _check_file(folder: Path, name: str, manifest: Manifest) -> None:
    size, expected = (folder / name).stat().st_size, manifest.files[name]
    if size != expected.num_bytes:  # also says how much of a large file is missing, at once
        raise CheckpointError(f"{folder / name}: is {size} bytes long, {expected.num_bytes} in the manifest")
    if hash_file(folder / name) != expected.sha256:
        raise CheckpointError(f"{folder / name}: SHA-256 differs from the manifest")


def _read_manifest(folder: Path) -> Manifest:
    content = (folder / MANIFEST).read_bytes()
    try:
        tree: dict[str, Any] = json.loads(content)
        own_sha256 = tree.pop("manifest_sha256")
        # Compared as bytes: a flip in the spaces between values is damage too.
        whole = encode_json({**tree, "manifest_sha256": own_sha256}) == content
        files = {
            name: ManifestEntry(entry["bytes"], entry["sha256"]) for name, entry in tree["files"].items()
        }
        manifest = Manifest(tree["digest"], files)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{folder / MANIFEST}: damaged") from None
    if not whole or own_sha256 != hashlib.sha256(encode_json(tree)).hexdigest():
        raise CheckpointError(f"{folder / MANIFEST}: damaged, its own SHA-256 differs")
    return manifest
