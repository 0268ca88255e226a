"""Which rows of a shared model's weights and moments a process writes into a checkpoint, and takes out of one."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from hmoe.checkpoint.pieces import PARTS, Piece, TensorFiles, TensorHash, add_hashes, hash_pieces
from hmoe.checkpoint.shared_load import StoredCheckpoint
from hmoe.errors import CheckpointError
from hmoe.parallel.ranks import Ranks


def find_rows(tensor: DTensor) -> range:
    """Return the rows of a tensor that this process holds, cut as `torch.chunk` cuts them."""
    rows = range(len(tensor))
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            rows = _cut_range(rows, tensor.device_mesh, axis)
    return rows


def cut_pieces(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Piece]]:
    """Return copies, on the CPU, of what this process writes of weights and moments, by part and name.

    Each row is written by one process: of processes that all hold it, each writes a part. What is no tensor of the
    engine's, such as a router's bias, every process holds whole, and the first one writes.
    """
    pieces: dict[str, dict[str, Piece]] = {part: {} for part in PARTS}
    for part, name, piece in _list_pieces(model, optimizer):
        pieces[part][name] = replace(piece, rows=piece.rows.to("cpu", copy=True))
    return pieces


@torch.no_grad()
def restore_pieces(
    stored: StoredCheckpoint, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> None:
    """Put this process's rows of a checkpoint into a model and its optimiser, and prove that all are in place.

    Raises:
        CheckpointError: if it belongs to another model, or rows are not those that were saved.
    """
    with ranks.together():
        tensors = stored.open_tensors()
        _check_shapes(stored.step, tensors["model"], model)
        parameters, moments = dict(model.named_parameters()), tensors["optimizer"]
        for name, parameter in parameters.items():
            rows = find_rows(parameter) if isinstance(parameter, DTensor) else None
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            local.copy_(tensors["model"].read(name, rows))
        for key in moments.shapes:
            name, _, moment = key.rpartition(".")
            optimizer.state[parameters[name]][moment] = _place_moment(moments, key, parameters[name])
        own = hash_pieces((f"{part}/{name}", piece) for part, name, piece in _list_pieces(model, optimizer))
    every = ranks.gather_values(own)
    with ranks.together():
        stored.check_hashes(
            add_hashes({name: TensorHash(*each) for name, each in hashes.items()} for hashes in every)
        )


def _check_shapes(step: int, weights: TensorFiles, model: nn.Module) -> None:
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted(shapes.keys() | weights.shapes.keys()):
        if shapes.get(name) != weights.shapes.get(name):
            raise CheckpointError(
                f"checkpoint of step {step}: {name} has shape {weights.shapes.get(name)}, the model {shapes.get(name)}"
            )


def _list_pieces(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, Piece]]:
    """Yield part, name and piece of all that this process writes; the pieces are views of the model's own."""
    for name, parameter in model.named_parameters():
        named = {("model", name): parameter}
        for moment, value in optimizer.state.get(parameter, {}).items():
            named["optimizer", f"{name}.{moment}"] = value
        for (part, key), tensor in named.items():
            if (piece := _cut_piece(tensor.detach())) is not None:
                yield part, key, piece


def _place_moment(moments: TensorFiles, key: str, parameter: nn.Parameter) -> torch.Tensor:
    """Return a moment, shared as its parameter is, on the parameter's device."""
    if not isinstance(parameter, DTensor) or not moments.shapes[key]:
        # Fused AdamW wants its scalar `step` there too.
        return moments.read(key).to(parameter.device, copy=True)
    local = torch.empty_like(parameter.to_local())
    local.copy_(moments.read(key, find_rows(parameter)))
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _cut_piece(tensor: torch.Tensor) -> Piece | None:
    """Return what this process writes of a tensor, None if others write it all."""
    if not isinstance(tensor, DTensor):
        if dist.get_rank() > 0:
            return None
        return Piece(tensor, 0, len(tensor) if tensor.ndim else 1)
    own = find_rows(tensor)
    written = own
    for axis, placement in enumerate(tensor.placements):
        if not isinstance(placement, Shard):
            written = _cut_range(written, tensor.device_mesh, axis)
    if not written:
        return None
    rows = tensor.to_local()[written.start - own.start : written.stop - own.start]
    return Piece(rows, written.start, len(tensor))


def _cut_range(rows: range, mesh: DeviceMesh, axis: int) -> range:
    """Return the part of some rows that falls to this process along an axis of a mesh."""
    size = -(-len(rows) // mesh.size(axis))
    start = min(mesh.get_local_rank(axis) * size, len(rows))
    return rows[start : start + size]
