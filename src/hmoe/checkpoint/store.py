"""Checkpoints that are whole, verified and without pickle: safetensors + JSON + a SHA-256 manifest.

    checkpoints/step-00000010/{model.safetensors, optimizer.safetensors, state.json, MANIFEST.json}

A checkpoint appears by one rename after everything in it was flushed to disk, is never changed afterwards, and holds no
times, hosts or paths, so equal runs write equal bytes. It is verified whole before any weight of it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hmoe.checkpoint.manifest import (
    FILES,
    MANIFEST,
    checkpoint_folder,
    encode_json,
    list_checkpoints,
    list_steps,
    raise_shortage,
    verify,
    write_manifest,
)
from hmoe.errors import CheckpointError
from hmoe.storage import fsync, utf8_name

Tensors = dict[str, torch.Tensor]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """What a verified checkpoint holds; `state` is plain JSON values."""

    step: int
    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Publish a checkpoint, verify it, then remove all but the newest `keep`.

    Raises:
        CheckpointError: if it cannot be written; earlier checkpoints are untouched and nothing is left behind.
    """
    folder = run / "checkpoints"
    final = checkpoint_folder(run, checkpoint.step)
    if final.exists():
        raise CheckpointError(f"{final}: exists already and is never rewritten")
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        for litter in folder.glob(".step-*"):
            shutil.rmtree(litter, ignore_errors=True)
        temporary.mkdir()
        _write(temporary, checkpoint)
        temporary.rename(final)
        fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.nbytes for tensors in (checkpoint.model, checkpoint.optimizer) for t in tensors.values())
        free = shutil.disk_usage(run).free
        raise CheckpointError(
            f"{final}: cannot be written: {error} (needs about {needed} bytes, {free} bytes free); earlier ones are intact"
        ) from None
    verify(final)
    for old in list_steps(run)[keep:]:
        hidden = folder / f".step-{old:08d}.old"  # a kill while deleting must not leave half a checkpoint
        checkpoint_folder(run, old).rename(hidden)
        shutil.rmtree(hidden)
    return final


def latest(run: Path, quarantine: bool, say: Say, optimizer: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None if none was ever written.

    A bad one is named by `say`, with `quarantine` also renamed to `*.corrupt`, and the next older is tried. Without
    `optimizer` its tensors are verified but not loaded.

    Raises:
        CheckpointError: if checkpoints were written and none can be trusted.
    """
    folder = run / "checkpoints"
    reasons = [f"{folder / name}: set aside as corrupt earlier" for name in list_checkpoints(run) if ".corrupt" in name]
    for step in list_steps(run):
        try:
            return read(checkpoint_folder(run, step), optimizer)
        except CheckpointError as error:
            reasons.append(str(error))
            say(f"{error}; falling back to the checkpoint before it")
            if quarantine:
                _set_aside(checkpoint_folder(run, step))
    if reasons:
        raise CheckpointError(f"{run}: no checkpoint can be trusted ({reasons[-1]}); start again in another run folder")
    return None


def read(folder: Path, optimizer: bool = True) -> Checkpoint:
    """Verify every byte of a checkpoint, then load it, and check the digest of what was loaded.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    expected = verify(folder)
    try:
        state = json.loads((folder / "state.json").read_bytes())
        checkpoint = Checkpoint(
            state["step"], _load(folder / FILES[0]), _load(folder / FILES[1]) if optimizer else {}, state
        )
        if folder.name != checkpoint_folder(folder, checkpoint.step).name:
            raise CheckpointError(f"{folder}: holds step {checkpoint.step}")
        if optimizer and digest(checkpoint) != expected:
            raise CheckpointError(f"{folder}: the digest of its tensors differs from the manifest")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, OSError):
            raise_shortage(error)
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None
    return checkpoint


def digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of the logical state: names, types, shapes and values, however they are laid out in files."""
    total = hashlib.sha256(json.dumps(checkpoint.state, sort_keys=True).encode())
    for part, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
        for name, tensor in sorted(tensors.items()):
            total.update(f"{part}/{name}/{tensor.dtype}/{list(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def capture(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Checkpoint:
    """The state of a run as a Checkpoint (views, not copies)."""
    moments = {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return Checkpoint(step, _on_cpu(dict(model.named_parameters())), _on_cpu(moments), {"step": step, **state})


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a checkpoint into a model, and its moments into the optimizer.

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
        # Onto the parameter's device, which fused AdamW wants of its `step` too; copied, since files do not align tensors.
        optimizer.state[parameters[name]][moment] = value.to(parameters[name].device, copy=True)


def _load(file: Path) -> Tensors:
    with utf8_name(file) as name:
        return load_file(name)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file({n: t.contiguous() for n, t in checkpoint.model.items()}, folder / FILES[0])
    save_file({n: t.contiguous() for n, t in checkpoint.optimizer.items()}, folder / FILES[1])
    (folder / "state.json").write_bytes(encode_json(checkpoint.state))
    write_manifest(folder, digest(checkpoint))
    for name in (*FILES, MANIFEST):
        fsync(folder / name)
    fsync(folder)


def _set_aside(folder: Path) -> None:
    number = 0
    while (target := folder.with_name(f"{folder.name}.corrupt{number or ''}")).exists():
        number += 1
    os.rename(folder, target)


def _on_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
