"""Checkpoints that several processes write together while training goes on.

    checkpoints/step-00000010/{model.rank-0-of-2.safetensors, ..., state.json, MANIFEST.json}

Each process writes its rows under a hidden name, flushes and reads them back, and hands in the hashes; when all have,
the first one writes the manifest and renames the folder. Nothing of that is done by the processes' messages, so it
goes on beside training, and a kill at any point leaves the older checkpoints and a hidden folder that goes when
the run is opened again.
"""

import json
import secrets
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hmoe.checkpoint.manifest import (
    MANIFEST,
    STATE_FILE,
    ManifestEntry,
    encode_json,
    locate_checkpoint,
    measure_file,
    read_state,
    write_manifest,
)
from hmoe.checkpoint.pieces import (
    PARTS,
    Piece,
    TensorHash,
    add_hashes,
    digest_hashes,
    hash_pieces,
    name_shared_file,
    read_pieces,
    write_pieces,
)
from hmoe.checkpoint.shared_load import Writers
from hmoe.checkpoint.store import prune_checkpoints, remove_litter, rename_durably
from hmoe.errors import CheckpointError
from hmoe.storage import flush_to_disk

PiecesByPart = Mapping[str, Mapping[str, Piece]]
_GRACE_SECONDS = 10.0  # that a checkpoint which is being written has when training ends with an error
_LOOK_SECONDS = 0.02  # between looks whether the others have written


class SharedSaver:
    """Publishes checkpoints of several processes, one at a time, while they train."""

    def __init__(self, run: Path, keep: int, writers: Writers) -> None:
        self._run, self._keep, self._writers = run, keep, writers
        self._thread: threading.Thread | None = None
        self._written, self._cancelled = threading.Event(), threading.Event()
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether this process could not write; `finish` raises the error in all of them."""
        return self._error is not None

    def save(self, step: int, pieces: PiecesByPart, state: Mapping[str, Any]) -> None:
        """Begin to publish a checkpoint; nobody may change the pieces, by part, until it is published.

        Raises:
            CheckpointError: if it cannot be written, or the one before could not; earlier ones are untouched.
        """
        self.finish()
        # As it is now: training goes on with what the values belong to.
        frozen = json.loads(json.dumps({"step": step, **state}))
        final = locate_checkpoint(self._run, step)
        # A name of its own: a process that outlived an earlier attempt may still write into that one's folder.
        token = self._writers.broadcast(secrets.token_hex(4))
        self._temporary = temporary = final.parent / f".{final.name}.{token}.tmp"
        with self._writers.together():
            if self._writers.rank == 0:
                _make_folder(final, temporary)
        self._written.clear()
        self._cancelled.clear()
        # A daemon: it may wait for a process that died, and must not keep this one alive.
        arguments = (temporary, final, pieces, frozen)
        self._thread = threading.Thread(target=self._publish, args=arguments, name="hmoe-save", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the checkpoint that was begun last is published.

        Raises:
            CheckpointError: if it cannot be.
        """
        if self._thread is None:
            return
        self._written.wait()
        try:
            self._raise_together()
            self._thread.join()
            self._raise_together()
        except Exception:
            self._cancelled.set()
            self._thread.join()
            if self._writers.rank == 0:  # no other writes there any more
                shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        finally:
            self._thread = self._error = None

    def abandon(self) -> None:
        """Let go of the checkpoint that was begun last, unless it is published soon: training ends with an error."""
        if self._thread is None:
            return
        self._thread.join(_GRACE_SECONDS)
        self._cancelled.set()
        self._thread.join()
        self._thread = None

    def _raise_together(self) -> None:
        error, self._error = self._error, None
        with self._writers.together():
            if error is not None:
                raise error

    def _publish(
        self,
        temporary: Path,
        final: Path,
        pieces: PiecesByPart,
        state: Mapping[str, Any],
    ) -> None:
        """Write this process's part; the first process waits for all, and gives the whole its name."""
        try:
            _write_part(temporary, self._writers, pieces)
            self._written.set()
            if self._writers.rank > 0:
                return
            reports = self._wait_for_parts(temporary)
            if reports is None:
                return
            _write_whole(temporary, state, reports)
            if self._cancelled.is_set():
                return
            rename_durably(temporary, final)
            read_state(final)  # the other files were read back by those who wrote them
        except (OSError, SafetensorError) as error:
            self._error = CheckpointError(self._explain(error, final, pieces))
        except Exception as error:  # raised by `finish`
            self._error = error
        finally:
            self._written.set()
        if self._error is None:
            self._prune()

    def _prune(self) -> None:
        try:
            prune_checkpoints(self._run, self._keep)
        except OSError as error:
            self._error = CheckpointError(f"{self._run}: older checkpoints cannot be removed: {error}")

    def _explain(self, error: Exception, final: Path, pieces: PiecesByPart) -> str:
        needed = sum(piece.rows.nbytes for part in pieces.values() for piece in part.values())
        try:
            free = f"{shutil.disk_usage(self._run).free} bytes free"
        except OSError as missing:
            free = str(missing)
        needs = f"needs about {needed} bytes of process {self._writers.rank}"
        return f"{final}: cannot be written: {error} ({needs}, {free}); earlier ones are intact"

    def _wait_for_parts(self, temporary: Path) -> list[dict[str, Any]] | None:
        """Return what each process says of its files, or None if one cannot write them."""
        files = [_name_report(temporary, rank) for rank in range(self._writers.size)]
        while not all(file.exists() for file in files):
            if self._cancelled.wait(_LOOK_SECONDS):
                return None
        reports = [json.loads(file.read_bytes()) for file in files]
        for file in files:
            file.unlink()
        return reports


def _make_folder(final: Path, temporary: Path) -> None:
    if final.exists():
        raise CheckpointError(f"{final}: exists already and is never rewritten")
    try:
        final.parent.mkdir(exist_ok=True)
        remove_litter(final.parent)
        temporary.mkdir()
    except OSError as error:
        raise CheckpointError(f"{final}: cannot be written: {error}; earlier ones are intact") from None


def _write_part(temporary: Path, writers: Writers, pieces: PiecesByPart) -> None:
    """Write, flush and read back the files of one process, then say what is in them."""
    entries: dict[str, ManifestEntry] = {}
    hashes: dict[str, TensorHash] = {}
    with ThreadPoolExecutor(1) as pool:
        flushes = []
        for part in PARTS:
            file = temporary / name_shared_file(part, writers.rank, writers.size)
            write_pieces(file, pieces[part])
            flushes.append(pool.submit(flush_to_disk, file))  # what follows needs no disk, but the processor
            entries[file.name] = measure_file(file)
            own = hash_pieces(pieces[part].items())
            if hash_pieces(read_pieces(file)) != own:
                raise CheckpointError(f"{file}: what can be read of it is not what was written")
            hashes |= {f"{part}/{name}": each for name, each in own.items()}
        for flush in flushes:
            flush.result()
    files = {name: [entry.num_bytes, entry.sha256] for name, entry in entries.items()}
    hidden = temporary / f".{writers.rank}"
    hidden.write_text(json.dumps({"files": files, "hashes": hashes}))
    hidden.rename(_name_report(temporary, writers.rank))


def _name_report(temporary: Path, rank: int) -> Path:
    return temporary / f".rank-{rank}.json"


def _write_whole(temporary: Path, state: Mapping[str, Any], reports: list[dict[str, Any]]) -> None:
    """Write what is there once: the state, and the manifest of all files."""
    (temporary / STATE_FILE).write_bytes(encode_json(dict(state)))
    hashes = add_hashes(
        {name: TensorHash(*each) for name, each in report["hashes"].items()} for report in reports
    )
    entries = {name: ManifestEntry(*entry) for report in reports for name, entry in report["files"].items()}
    write_manifest(temporary, digest_hashes(state, hashes), entries)
    for name in (STATE_FILE, MANIFEST):
        flush_to_disk(temporary / name)
