"""Which rows of a shared model's weights and moments a process writes into a checkpoint, and takes out of one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hmoe.checkpoint.pieces import (
    PARTS,
    Piece,
    TensorFiles,
    TensorHash,
    add_hashes,
    hash_pieces,
    name_further_pieces,
)
from hmoe.checkpoint.shared_load import StoredCheckpoint
from hmoe.errors import CheckpointError
from hmoe.parallel.kept_rows import KeptRows, list_kept_rows
from hmoe.parallel.ranks import Ranks


def cut_pieces(
    model: nn.Module, optimizer: torch.optim.Optimizer, copies: bool = True
) -> dict[str, dict[str, Piece]]:
    """Return what this process writes of weights and moments, by part and name: copies on the CPU, or views if not.

    Each row is written by one process: of processes that all hold it, each writes a part. What is no tensor of the
    engine's, such as a router's bias, every process holds whole, and the first one writes.
    """
    pieces: dict[str, list[tuple[str, Piece]]] = {part: [] for part in PARTS}
    for part, name, piece in _list_pieces(model, optimizer):
        pieces[part].append((name, replace(piece, rows=piece.rows.to("cpu", copy=copies))))
    return {part: name_further_pieces(own) for part, own in pieces.items()}


@torch.no_grad()
def restore_pieces(
    stored: StoredCheckpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    homes: Mapping[nn.Parameter, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Put this process's rows of a checkpoint into a model and its optimiser, and prove that all are in place.

    Args:
        stored: the checkpoint.
        model, optimizer: whose state it becomes.
        ranks: all processes that do so.
        homes: memory for moments of some parameters, by name; all others get their own.

    Raises:
        CheckpointError: if it belongs to another model, or rows are not those that were saved.
    """
    with ranks.together():
        tensors = stored.open_tensors()
        kept = list_kept_rows(model)
        _check_shapes(stored.step, tensors["model"], kept)
        moments = tensors["optimizer"]
        keys: dict[str, list[str]] = {}
        for key in moments.shapes:
            keys.setdefault(key.rpartition(".")[0], []).append(key)
        for each in kept:
            _get_local(each.parameter).copy_(_read_rows(tensors["model"], each.name, each))
            for key in keys.get(each.name, []):
                moment = key.rpartition(".")[2]
                home = (homes or {}).get(each.parameter, {}).get(moment)
                if home is None:
                    home = _place_moment(moments, key, each)
                else:
                    _get_local(home).copy_(_read_rows(moments, key, each))
                optimizer.state[each.parameter][moment] = home
        own = hash_pieces((f"{part}/{name}", piece) for part, name, piece in _list_pieces(model, optimizer))
    every = ranks.gather_values(own)
    with ranks.together():
        stored.check_hashes(
            add_hashes({name: TensorHash(*each) for name, each in hashes.items()} for hashes in every)
        )


def _check_shapes(step: int, weights: TensorFiles, kept: Sequence[KeptRows]) -> None:
    shapes = {each.name: each.shape for each in kept}
    for name in sorted(shapes.keys() | weights.shapes.keys()):
        if shapes.get(name) != weights.shapes.get(name):
            raise CheckpointError(
                f"checkpoint of step {step}: {name} has shape {weights.shapes.get(name)}, the model {shapes.get(name)}"
            )


def _list_pieces(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, Piece]]:
    """Yield part, name and piece of all that this process writes; the pieces are views of the model's own."""
    for kept in list_kept_rows(model):
        named: dict[tuple[str, str], torch.Tensor] = {("model", kept.name): kept.parameter}
        for moment, value in optimizer.state.get(kept.parameter, {}).items():
            named["optimizer", f"{kept.name}.{moment}"] = value
        for (part, key), tensor in named.items():
            for piece in _cut_tensor(tensor.detach(), kept):
                yield part, key, piece


def _get_local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _read_rows(files: TensorFiles, key: str, kept: KeptRows) -> torch.Tensor:
    """Return the rows of a stored tensor that this process holds."""
    if not isinstance(kept.parameter, DTensor):
        return files.read(key)
    own = [files.read(key, rows) for rows in kept.list_own()] or [files.read(key, range(0))]
    return own[0] if len(own) == 1 else torch.cat(own)


def _place_moment(moments: TensorFiles, key: str, kept: KeptRows) -> torch.Tensor:
    """Return a moment, shared as its parameter is, on the parameter's device."""
    parameter = kept.parameter
    if not isinstance(parameter, DTensor) or not moments.shapes[key]:
        # Fused AdamW wants its scalar `step` there too.
        return moments.read(key).to(parameter.device, copy=True)
    local = torch.empty_like(parameter.to_local())
    local.copy_(_read_rows(moments, key, kept))
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _cut_tensor(tensor: torch.Tensor, kept: KeptRows) -> Iterator[Piece]:
    """Yield what this process writes of a parameter or of one of its moments."""
    if not isinstance(tensor, DTensor):
        # Another parameter of the same tensor has the same number of steps.
        if dist.get_rank() == 0 and not kept.is_replica:
            yield Piece(tensor, 0, len(tensor) if tensor.ndim else 1)
        return
    local, own, first = tensor.to_local(), kept.list_own(), 0
    for written in kept.list_written():
        for rows in own:
            start, stop = max(rows.start, written.start), min(rows.stop, written.stop)
            if start < stop:
                place = first + start - rows.start
                yield Piece(local[place : place + stop - start], start, kept.shape[0])
            first += len(rows)
        first = 0
