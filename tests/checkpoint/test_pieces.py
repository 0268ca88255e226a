"""Tensors whose rows several files hold: hashes that add up, rows that are read from wherever they lie."""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hmoe.checkpoint.pieces import (
    Piece,
    TensorFiles,
    add_hashes,
    digest_hashes,
    hash_pieces,
    list_tensor_files,
    name_shared_file,
    read_pieces,
    write_pieces,
)
from hmoe.errors import CheckpointError

TENSORS = {
    "matrix": torch.randn(307, 5),
    "vector": torch.randn(11),
    "wide": torch.randn(2, 64, dtype=torch.float64),
    "odd": torch.randn(7, 3).to(torch.bfloat16),
    "numbers": torch.randint(-9, 9, (6, 1)),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
}


def whole(tensor: torch.Tensor) -> Piece:
    return Piece(tensor, 0, len(tensor) if tensor.ndim else 1)


def cut(tensor: torch.Tensor, stops: Sequence[int]) -> list[Piece]:
    """Pieces between the given rows; a scalar is in the first alone."""
    if not tensor.ndim:
        return [whole(tensor)]
    return [
        Piece(tensor[a:b], a, len(tensor))
        for a, b in pairwise([0, *stops, len(tensor)])
        if b > a or not len(tensor)
    ]


def cut_at_random(tensor: torch.Tensor) -> list[Piece]:
    rows = len(tensor) if tensor.ndim else 0
    return cut(tensor, sorted(random.choices(range(rows + 1), k=3)))


@pytest.mark.parametrize("name", TENSORS)
def test_the_hashes_of_pieces_add_up_to_that_of_the_whole(name: str) -> None:
    expected = hash_pieces([(name, whole(TENSORS[name]))])
    for _ in range(20):
        pieces = cut_at_random(TENSORS[name])
        random.shuffle(pieces)
        assert add_hashes(hash_pieces([(name, piece)]) for piece in pieces) == expected


@pytest.mark.parametrize("name", ["matrix", "vector", "wide", "odd"])
def test_a_flipped_bit_and_rows_in_each_other_s_place_are_told(name: str) -> None:
    tensor = TENSORS[name]
    seen = {hash_pieces([("a", whole(tensor))])["a"].value}
    flipped = tensor.clone()
    content = flipped.view(torch.uint8).view(-1)
    places = random.sample(range(8 * len(content)), min(200, 8 * len(content)))
    for place in places:
        content[place // 8] ^= 1 << (place % 8)
        seen.add(hash_pieces([("a", whole(flipped))])["a"].value)
        content[place // 8] ^= 1 << (place % 8)
    swapped = tensor.clone()
    swapped[[0, 1]] = tensor[[1, 0]]
    seen.add(hash_pieces([("a", whole(swapped))])["a"].value)
    seen.add(hash_pieces([("a", whole(tensor.flip(-1)))])["a"].value)
    shifted = hash_pieces([("a", Piece(tensor, 1, len(tensor) + 1))])["a"]
    assert len(seen | {shifted.value}) == len(places) + 4


def test_the_digest_depends_on_names_types_shapes_and_state() -> None:
    rows = torch.zeros(4, 2)
    digests = {
        digest_hashes(state, hash_pieces([(name, whole(tensor))]))
        for state, name, tensor in (
            ({"step": 1}, "a", rows),
            ({"step": 2}, "a", rows),
            ({"step": 1}, "b", rows),
            ({"step": 1}, "a", rows.view(2, 4)),
            ({"step": 1}, "a", rows.to(torch.int32)),
        )
    }
    assert len(digests) == 5


def write_files(folder: Path, number: int) -> list[str]:
    """Files of `number` processes, whose cuts are other ones in each tensor; names of the files."""
    cuts = {name: cut_at_random(tensor) for name, tensor in TENSORS.items()}
    names = [name_shared_file("model", rank, number) for rank in range(number)]
    for rank, file in enumerate(names):
        write_pieces(
            folder / file, {name: pieces[rank] for name, pieces in cuts.items() if rank < len(pieces)}
        )
    return names


def test_any_rows_are_read_from_whichever_files_hold_them(tmp_path: Path) -> None:
    files = TensorFiles(tmp_path, write_files(tmp_path, 4))
    assert files.shapes == {name: list(tensor.shape) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert torch.equal(files.read(name), tensor)
        for _ in range(30 if tensor.ndim else 0):
            first, last = sorted(random.choices(range(len(tensor) + 1), k=2))
            rows = files.read(name, range(first, last))
            assert rows.dtype == tensor.dtype
            assert torch.equal(rows, tensor[first:last])


def test_what_was_written_is_what_is_read_back(tmp_path: Path) -> None:
    pieces = {"a": Piece(torch.randn(3, 2), 5, 9), "b": whole(torch.tensor(1.0))}
    write_pieces(tmp_path / "x", pieces)
    assert hash_pieces(read_pieces(tmp_path / "x")) == hash_pieces(pieces.items())


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Piece(torch.zeros(2, 3), 3, 5), "row 2 of a is there twice or not at all"),
        (Piece(torch.zeros(4, 3), 1, 5), "row 1 of a is there twice or not at all"),
        (Piece(torch.zeros(2, 3), 2, 5), "a has 4 of 5 rows"),
        (Piece(torch.zeros(3, 3), 2, 6), r"a has shape \[6, 3\], \[5, 3\] in other files"),
        (Piece(torch.zeros(3, 4), 2, 5), r"a has shape \[5, 4\], \[5, 3\] in other files"),
    ],
)
def test_each_row_must_be_there_once(second: Piece, said: str, tmp_path: Path) -> None:
    write_pieces(tmp_path / "0", {"a": Piece(torch.zeros(2, 3), 0, 5)})
    write_pieces(tmp_path / "1", {"a": second})
    with pytest.raises(CheckpointError, match=said):
        TensorFiles(tmp_path, ["0", "1"])


@pytest.mark.parametrize(
    "rows", ["[", "[" * 100_000, "3", '{"a": 3}', '{"a": [1]}', '{"a": ["x", 2]}', '{"a": [true, 5]}', "null"]
)
def test_metadata_of_another_kind_are_named(rows: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "0", {"rows": rows})
    with pytest.raises(CheckpointError, match=r"0: its metadata do not tell which rows it holds"):
        TensorFiles(tmp_path, ["0"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.safetensors"], "lists no optimizer.safetensors"),
        (["model.safetensors", "optimizer.rank-0-of-2.safetensors"], "lists no optimizer.rank-1-of-2"),
        (
            ["model.safetensors", "model.rank-0-of-1.safetensors", "optimizer.safetensors"],
            "lists model.rank-0-of-1.safetensors besides model.safetensors",
        ),
    ],
)
def test_files_of_a_part_must_belong_together(names: list[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        list_tensor_files(["state.json", *names])


def test_the_files_of_one_process_and_of_several_are_found() -> None:
    plain = ["model.safetensors", "optimizer.safetensors"]
    assert list_tensor_files(["state.json", *plain]) == {"model": plain[:1], "optimizer": plain[1:]}
    shared = [name_shared_file(part, rank, 12) for rank in range(12) for part in ("optimizer", "model")]
    by_part = list_tensor_files(shared)
    assert by_part["model"] == [name_shared_file("model", rank, 12) for rank in range(12)]
