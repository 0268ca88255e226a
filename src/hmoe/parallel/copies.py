"""Whether processes that hold copies of the same weights and moments still hold the same bits."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from hmoe.checkpoint.pieces import Piece, hash_pieces
from hmoe.errors import DistributedError
from hmoe.parallel.kept_rows import KeptRows, list_kept_rows
from hmoe.parallel.ranks import Ranks


def check_copies(model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, step: int) -> None:
    """Compare what several processes hold alike: router biases, whole models, groups of `parallel.replicas`.

    They start with the same bits and apply the same sums, so that a difference is memory or a link that failed. Rows
    that one process alone holds have no copy to be compared with. Processors of different kinds may round otherwise
    (`describe_arithmetic`); then nothing is compared. What is compared is a hash of 64 bits of each range of rows, in
    which a flipped bit always shows. Every process calls it.

    Args:
        model, optimizer: of this process.
        ranks: all processes.
        step: of training, for the message.

    Raises:
        DistributedError: in all of them if any differs, naming the tensor and the processes.
    """
    own = {f"{name}, {_name_rows(rows)}": value for name, rows, value in _hash_copies(model, optimizer)}
    every = ranks.gather_values([describe_arithmetic(next(model.parameters()).device.type), own])
    if len({arithmetic for arithmetic, _ in every}) > 1:
        return
    difference = describe_difference_of_copies([hashes for _, hashes in every])
    if difference:
        raise DistributedError(
            f"step {step}: {difference}, which must hold the same; the memory of a process or a link failed, or they "
            "round otherwise; nothing of this step is saved"
        )


def describe_arithmetic(device: str) -> str:
    """Return what a process computes with on a kind of device, as far as it decides how numbers are rounded."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    parts = [model or platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return f"{', '.join(parts)}, {torch.get_num_threads()} threads"


def describe_difference_of_copies(hashes: Sequence[Mapping[str, int]]) -> str:
    """Return the first rows of which processes hold other bits, and who does, "" if none do."""
    first: dict[str, tuple[int, int]] = {}
    for rank, own in enumerate(hashes):
        for rows, value in own.items():
            holder, expected = first.setdefault(rows, (rank, value))
            if value != expected:
                return f"{rows}: process {rank} holds other bits than process {holder}"
    return ""


def _hash_copies(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, range, int]]:
    """Yield name, rows and hash of all that other processes may hold, too."""
    for kept in list_kept_rows(model):
        if not _may_have_copies(kept):
            continue
        named = {kept.name: kept.parameter.detach()}
        for moment, value in optimizer.state.get(kept.parameter, {}).items():
            named[f"{kept.name}.{moment}"] = value
        for name, tensor in named.items():
            yield from _hash_rows_of(name, tensor, kept)


def _may_have_copies(kept: KeptRows) -> bool:
    if not isinstance(kept.parameter, DTensor):
        return True
    return not all(isinstance(placement, Shard) for placement in kept.parameter.placements)


def _hash_rows_of(name: str, tensor: torch.Tensor, kept: KeptRows) -> Iterator[tuple[str, range, int]]:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.ndim:
        yield name, range(1), hash_pieces([(name, Piece(local, 0, 1))])[name].value
        return
    first = 0
    for rows in kept.list_own():
        if rows:
            piece = Piece(local[first : first + len(rows)], rows.start, kept.shape[0])
            yield name, rows, hash_pieces([(name, piece)])[name].value
        first += len(rows)


def _name_rows(rows: range) -> str:
    return f"rows {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"row {rows.start}"
