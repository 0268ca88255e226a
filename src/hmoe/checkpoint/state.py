"""The state of a training run as one object: captured, restored, written to files and read.

Every tensor of a Checkpoint is whole, with the shape of its parameter, so that files do not depend on where a
parameter lay. `_gather_tensor` is the one place where a tensor of the running model becomes such a tensor.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hmoe.checkpoint.manifest import MANIFEST, STATE_FILE, encode_json
from hmoe.errors import CheckpointError
from hmoe.storage import open_utf8_name

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
STANDARD_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
NamedTensors = dict[str, torch.Tensor]


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
        f"{name}.{moment}": _gather_tensor(value)
        for name, parameter in parameters.items()
        for moment, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items()
    }
    weights = {name: _gather_tensor(parameter) for name, parameter in parameters.items()}
    return Checkpoint(step, weights, moments, {"step": step, **state})


def restore_state(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put the weights of a checkpoint into a model, and its moments into the optimizer.

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
        optimizer.state[parameters[name]][moment] = _place_tensor(value, parameters[name])


def digest_state(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 of the logical state: names, types, shapes and values, whatever the files' layout."""
    total = hashlib.sha256(json.dumps(checkpoint.state, sort_keys=True).encode())
    for part, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
        for name, tensor in sorted(tensors.items()):
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
        if name in ("", *STANDARD_FILES, MANIFEST) or name.startswith(".") or Path(name).name != name:
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
    state = json.loads((folder / STATE_FILE).read_bytes())
    extra_files = {name: (folder / name).read_bytes() for name in names if name not in STANDARD_FILES}
    moments = _load_tensors(folder / OPTIMIZER_FILE) if optimizer else {}
    return Checkpoint(state["step"], _load_tensors(folder / MODEL_FILE), moments, state, extra_files)


def _gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whole and on the CPU; one that is sharded over processes would be gathered here."""
    return tensor.detach().cpu()


def _place_tensor(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    # Onto the parameter's device, which fused AdamW wants of its `step` too. Copied, since files do not align
    # tensors, and the last bit of a product may depend on that.
    return value.to(parameter.device, copy=True)


def _load_tensors(file: Path) -> NamedTensors:
    with open_utf8_name(file) as name:
        return load_file(name)
