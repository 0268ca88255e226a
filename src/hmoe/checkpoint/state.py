"""The state of a training run as one object: captured, restored, written to files and read.

Every tensor of a Checkpoint is whole, with the shape of its parameter, whether one process wrote it or several did,
each its rows (`hmoe.checkpoint.pieces`).
"""

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hmoe.checkpoint.manifest import MANIFEST, STATE_FILE, encode_json
from hmoe.checkpoint.pieces import (
    Piece,
    TensorFiles,
    digest_hashes,
    hash_pieces,
    is_tensor_file,
    list_tensor_files,
)
from hmoe.errors import CheckpointError
from hmoe.storage import read_json

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
NamedTensors = Mapping[str, torch.Tensor]


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name that are read when they are asked for, each time anew: never all of them are in memory."""

    def __init__(self, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after a step.

    Attributes:
        step: training steps taken.
        model: parameters by their name in the model.
        optimizer: moments of AdamW by `PARAMETER.MOMENT`; {} before the first step.
        state: counters, config and fingerprints as plain JSON values, `step` among them.
        extra_files: contents of further files by name; the manifest and the digest cover them like the others.
    """

    step: int
    model: NamedTensors
    optimizer: NamedTensors
    state: dict[str, Any]
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


def capture_state(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None, state: dict[str, Any]
) -> Checkpoint:
    """Return the state of a run as a Checkpoint; on the CPU its tensors are views of the run's own.

    Without an optimizer there are no moments: AdamW begins anew.
    """
    parameters = dict(model.named_parameters())
    moments = {
        f"{name}.{moment}": value.detach().cpu()
        for name, parameter in parameters.items()
        for moment, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items()
    }
    weights = {name: parameter.detach().cpu() for name, parameter in parameters.items()}
    return Checkpoint(step, weights, moments, {"step": step, **state})


def restore_state(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    homes: Mapping[nn.Parameter, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Put the weights of a checkpoint into a model, and its moments into the optimizer.

    Args:
        checkpoint: that was loaded.
        model, optimizer: whose state it becomes.
        homes: memory for moments of some parameters, by name; all others get their own.

    Raises:
        CheckpointError: if it belongs to another model.
    """
    parameters = dict(model.named_parameters())
    for name in parameters.keys() | checkpoint.model.keys():
        shapes = [tuple(t[name].shape) if name in t else None for t in (parameters, checkpoint.model)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"checkpoint of step {checkpoint.step}: {name} has shape {shapes[1]}, the model {shapes[0]}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(checkpoint.model[name])
    if optimizer is None:
        return
    for key, value in checkpoint.optimizer.items():
        name, _, moment = key.rpartition(".")
        home = (homes or {}).get(parameters[name], {}).get(moment)
        placed = _place_tensor(value, parameters[name]) if home is None else home.copy_(value)
        optimizer.state[parameters[name]][moment] = placed


def digest_shared_state(checkpoint: Checkpoint) -> str:
    """Return the digest that several processes give a state, each of which hashes its own rows."""
    parts = (("model", checkpoint.model), ("optimizer", checkpoint.optimizer))
    pieces = {
        f"{part}/{name}": Piece(tensor, 0, len(tensor) if tensor.ndim else 1)
        for part, tensors in parts
        for name, tensor in tensors.items()
    }
    return digest_hashes(checkpoint.state, hash_pieces(pieces.items()))


def digest_state(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 that one process gives a state: of names, types, shapes and values."""
    total = hashlib.sha256(json.dumps(checkpoint.state, sort_keys=True).encode())
    for part, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
        for name in sorted(tensors):
            tensor = tensors[name]
            total.update(f"{part}/{name}/{tensor.dtype}/{list(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    # Without extra files nothing is added: digests of checkpoints written before there were any stay valid.
    for name, content in sorted(checkpoint.extra_files.items()):
        total.update(f"file/{name}/{len(content)}".encode())
        total.update(content)
    return total.hexdigest()


def write_checkpoint_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint, all but its manifest, into an empty folder.

    Raises:
        ValueError: for the name of an extra file that a checkpoint cannot have.
    """
    for name in checkpoint.extra_files:
        taken = name in ("", STATE_FILE, MANIFEST) or is_tensor_file(name)
        if taken or name.startswith(".") or Path(name).name != name:
            raise ValueError(
                f"extra file {name!r}: must be a plain, visible file name that no other file has"
            )
    for name, tensors in ((MODEL_FILE, checkpoint.model), (OPTIMIZER_FILE, checkpoint.optimizer)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    (folder / STATE_FILE).write_bytes(encode_json(checkpoint.state))
    for name, content in checkpoint.extra_files.items():
        (folder / name).write_bytes(content)


def read_checkpoint_files(folder: Path, names: Iterable[str], optimizer: bool) -> Checkpoint:
    """Read the named, verified files of a checkpoint; without `optimizer` its tensors are not read.

    Raises:
        OSError, ValueError, KeyError, TypeError, SafetensorError: if they are not what a checkpoint holds.
    """
    state = read_json(folder / STATE_FILE)
    names, tensor_files = set(names), list_tensor_files(names)
    extra_names = names.difference((STATE_FILE,), *tensor_files.values())
    extra_files = {name: (folder / name).read_bytes() for name in sorted(extra_names)}
    moments = _load_tensors(folder, tensor_files["optimizer"]) if optimizer else {}
    return Checkpoint(
        state["step"], _load_tensors(folder, tensor_files["model"]), moments, state, extra_files
    )


def _place_tensor(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    # Onto the parameter's device, which fused AdamW wants of its `step` too. Copied, since files do not align
    # tensors, and the last bit of a product may depend on that.
    return value.to(parameter.device, copy=True)


def _load_tensors(folder: Path, names: Sequence[str]) -> NamedTensors:
    """Return whole tensors from the one file that holds them, or merged from those of several processes."""
    if len(names) > 1:
        files = TensorFiles(folder, names)
        return LazyTensors(files.shapes, lambda name: _read_tensor(folder, name, files.read))
    # Opened once: what was verified is what is read, though the checkpoint may be removed meanwhile.
    file, handle = folder / names[0], os.open(folder / names[0], os.O_RDONLY)

    def read(name: str) -> torch.Tensor:
        with safe_open(f"/dev/fd/{handle}", "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    try:
        with safe_open(f"/dev/fd/{handle}", "pt") as opened:
            tensors = LazyTensors(opened.keys(), lambda name: _read_tensor(file, name, read))
    except BaseException:
        os.close(handle)
        raise
    weakref.finalize(tensors, os.close, handle)
    return tensors


def _read_tensor(place: Path, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    try:
        return read(name)
    except SafetensorError as error:  # it was verified, and changed since
        raise CheckpointError(f"{place}: {name} cannot be read: {error}") from None
