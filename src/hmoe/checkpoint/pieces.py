"""Tensors that processes share row by row, in files of which each process writes its own.

    model.rank-0-of-2.safetensors  model.rank-1-of-2.safetensors  optimizer.rank-0-of-2.safetensors ...

Each file is plain safetensors; its metadata tells which rows of which tensor it holds. Where a process has several
pieces of one, such as experts that are no neighbours, those after the first are named TENSOR@1, TENSOR@2, ... PyTorch's
distributed checkpoints do the same, but their index is a pickle, which runs code, and nothing tells a flipped bit.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hmoe.errors import CheckpointError
from hmoe.storage import open_utf8_name

PARTS = ("model", "optimizer")
_FILE_NAME = re.compile(r"(model|optimizer)(?:\.rank-(\d+)-of-(\d+))?\.safetensors")
_ROWS = "rows"  # key in a file's metadata: {TENSOR: [first row, rows of the whole tensor]}


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor that one process holds; a scalar is one row.

    Attributes:
        rows: the values, on the CPU.
        first: number of the first row.
        num_rows: of the whole tensor.
    """

    rows: torch.Tensor
    first: int
    num_rows: int

    @property
    def whole_shape(self) -> list[int]:
        """Shape of the tensor that the rows belong to."""
        return [self.num_rows, *self.rows.shape[1:]] if self.rows.ndim else []


class TensorHash(NamedTuple):
    """What identifies a tensor, however its rows are spread: a number that adds up over pieces, modulo 2**64."""

    dtype: str
    shape: list[int]
    value: int


def name_shared_file(part: str, rank: int, size: int) -> str:
    """Return the name of a process's file of a part of the state."""
    return f"{part}.rank-{rank}-of-{size}.safetensors"


def is_tensor_file(name: str) -> bool:
    """Return whether a file with such a name holds tensors of a checkpoint."""
    return _FILE_NAME.fullmatch(name) is not None


def list_tensor_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the files with tensors, by part of the state, of one process or of all that wrote them.

    Raises:
        CheckpointError: if one is missing, or files of another number of processes lie there too.
    """
    by_part: dict[str, list[str]] = {part: [] for part in PARTS}
    sizes: dict[str, set[str | None]] = {part: set() for part in PARTS}
    for name in names:
        if match := _FILE_NAME.fullmatch(name):
            by_part[match[1]].append(name)
            sizes[match[1]].add(match[3])
    for part, files in by_part.items():
        size = min(sizes[part], key=lambda size: int(size or 0), default=None)
        expected = (
            [f"{part}.safetensors"]
            if size is None
            else [name_shared_file(part, rank, int(size)) for rank in range(int(size))]
        )
        if missing := [name for name in expected if name not in files]:
            raise CheckpointError(f"lists no {', '.join(missing[:4])}, which the checkpoint must have")
        if more := sorted(set(files).difference(expected)):
            raise CheckpointError(f"lists {', '.join(more[:4])} besides {', '.join(expected[:4])}")
        by_part[part] = expected
    return by_part


def name_further_pieces(pieces: Iterable[tuple[str, Piece]]) -> dict[str, Piece]:
    """Return pieces by a name for each, in the order of their rows: TENSOR, TENSOR@1, TENSOR@2, ..."""
    by_tensor: dict[str, list[Piece]] = {}
    for name, piece in pieces:
        by_tensor.setdefault(name, []).append(piece)
    return {
        f"{name}@{place}" if place else name: piece
        for name, own in by_tensor.items()
        for place, piece in enumerate(sorted(own, key=lambda piece: piece.first))
    }


def _get_tensor_name(key: str) -> str:
    return key.partition("@")[0]


def write_pieces(file: Path, pieces: Mapping[str, Piece]) -> None:
    """Write a process's pieces of one part of the state."""
    rows = {name: [piece.first, piece.num_rows] for name, piece in pieces.items()}
    metadata = {_ROWS: json.dumps(rows, sort_keys=True)}
    save_file({name: piece.rows.contiguous() for name, piece in pieces.items()}, file, metadata)


def read_pieces(file: Path) -> Iterator[tuple[str, Piece]]:
    """Yield the names and pieces that a file holds, one at a time."""
    with open_utf8_name(file) as path, safe_open(path, "pt") as opened:
        rows = _read_rows(opened)
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            if name not in rows:
                raise CheckpointError(f"{file}: its metadata do not tell which rows of {name} it holds")
            yield name, Piece(opened.get_tensor(name), *rows[name])


def _read_rows(file: Any) -> dict[str, list[int]]:
    try:
        rows: dict[str, list[int]] = json.loads((file.metadata() or {}).get(_ROWS, "{}"))
        if all(len(place) == 2 and set(map(type, place)) == {int} for place in rows.values()):
            return rows
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError("its metadata do not tell which rows it holds")


class TensorFiles:
    """The tensors of one part of the state, in one file or in several; rows are read when they are asked for.

    Raises:
        CheckpointError: if the rows in the files are not each row of every tensor exactly once.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._places: dict[str, list[tuple[int, int, Any, str]]] = {}
        self.shapes: dict[str, list[int]] = {}
        for name in names:
            try:
                with open_utf8_name(folder / name) as path:
                    file = safe_open(path, "pt")
                self._add_file(file, _read_rows(file))
            except SafetensorError as error:
                raise CheckpointError(f"{folder / name}: cannot be read: {str(error)[:200]}") from None
            except CheckpointError as error:
                raise CheckpointError(f"{folder / name}: {error}") from None
        for name, places in self._places.items():
            self._check_rows(name, places, folder)

    def _add_file(self, file: Any, rows: Mapping[str, list[int]]) -> None:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            name, shape = _get_tensor_name(key), list(file.get_slice(key).get_shape())
            first, num_rows = rows.get(key, (0, shape[0] if shape else 1))
            whole = [num_rows, *shape[1:]] if shape else []
            if self.shapes.setdefault(name, whole) != whole:
                raise CheckpointError(f"{name} has shape {whole}, {self.shapes[name]} in other files")
            place = first, shape[0] if shape else 1, file, key
            self._places.setdefault(name, []).append(place)

    def _check_rows(self, name: str, places: list[tuple[int, int, Any, str]], folder: Path) -> None:
        places.sort(key=lambda place: place[:2])
        row, (num_rows, *_) = 0, self.shapes[name] or [1]
        for first, count, *_ in places:
            if first != row:
                raise CheckpointError(
                    f"{folder}: row {min(first, row)} of {name} is there twice or not at all"
                )
            row += count
        if row != num_rows:
            raise CheckpointError(f"{folder}: {name} has {row} of {num_rows} rows")

    def read(self, name: str, rows: range | None = None) -> torch.Tensor:
        """Return rows of a tensor, all by default; nothing else is read."""
        if not self.shapes[name]:
            *_, file, key = self._places[name][0]
            scalar: torch.Tensor = file.get_tensor(key)
            return scalar
        rows = range(self.shapes[name][0]) if rows is None else rows
        parts = [
            file.get_slice(key)[max(rows.start - first, 0) : max(rows.stop - first, 0)]
            for first, count, file, key in self._places[name]
            if (first < rows.stop and rows.start < first + count) or len(self._places[name]) == 1
        ]
        if not parts:  # no rows: any place tells the type
            *_, file, key = self._places[name][0]
            parts = [file.get_slice(key)[:0]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def hash_pieces(pieces: Iterable[tuple[str, Piece]]) -> dict[str, TensorHash]:
    """Return a hash of each tensor's pieces, which added up over all of its pieces is that of the whole."""
    return add_hashes({_get_tensor_name(key): _hash_piece(piece)} for key, piece in pieces)


def add_hashes(parts: Iterable[Mapping[str, TensorHash]]) -> dict[str, TensorHash]:
    """Return the hashes of whole tensors, given those of the pieces of several processes."""
    total: dict[str, TensorHash] = {}
    for part in parts:
        for name, (dtype, shape, value) in part.items():
            before = total.get(name, TensorHash(dtype, shape, 0))
            total[name] = TensorHash(dtype, shape, (before.value + value) % 2**64)
    return total


def digest_hashes(state: Mapping[str, Any], hashes: Mapping[str, TensorHash]) -> str:
    """Return a SHA-256 of the logical state that does not depend on how its tensors' rows are spread."""
    total = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name, (dtype, shape, value) in sorted(hashes.items()):
        total.update(f"{name}/{dtype}/{shape}/{value:016x}".encode())
    return total.hexdigest()


def _hash_piece(piece: Piece) -> TensorHash:
    return TensorHash(str(piece.rows.dtype), piece.whole_shape, _hash_rows(piece.rows, piece.first))


def _hash_rows(rows: torch.Tensor, first: int) -> int:
    """Return the sum of bits times numbers that depend on their row and place in it, modulo 2**64.

    Against mistakes, such as rows in another's place, not against malice: that is the manifest's part.
    """
    if not rows.numel():
        return 0
    table = rows.detach().cpu().contiguous().view(len(rows) if rows.ndim else 1, -1)
    content = table.view(torch.uint8).numpy()
    if content.shape[1] % 4:
        content = np.pad(content, ((0, 0), (0, -content.shape[1] % 4)))
    words = content.view(np.uint32)
    by_place = _mix(0, words.shape[1]) | np.uint64(1)
    by_row = _mix(first + 2**32, len(words)) | np.uint64(1)
    return int(np.dot(np.einsum("ij,j->i", words, by_place), by_row))


def _mix(first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return numbers that look like random ones, a function of the numbers counted on from the first (SplitMix64)."""
    mixed = (np.arange(first + 1, first + 1 + count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
