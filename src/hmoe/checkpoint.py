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
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hmoe import recipes
from hmoe.config import RunConfig
from hmoe.data import tokenizer as tokenizers
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import CheckpointError, ConfigError
from hmoe.files import fsync, sha256
from hmoe.model.transformer import Transformer

_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_MANIFEST = "MANIFEST.json"
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
    final = _path(run, checkpoint.step)
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
    for old in _steps(run)[keep:]:
        hidden = folder / f".step-{old:08d}.old"  # a kill while deleting must not leave half a checkpoint
        _path(run, old).rename(hidden)
        shutil.rmtree(hidden)
    return final


def latest(run: Path, quarantine: bool, say: Say, optimizer: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None if none was ever written.

    A bad one is named by `say`, with `quarantine` also renamed to `*.corrupt`, and the next older is tried. Without
    `optimizer` its tensors are verified but not loaded.

    Raises:
        CheckpointError: if checkpoints were written and none can be trusted.
    """
    reasons = [f"{path}: set aside as corrupt earlier" for path in sorted((run / "checkpoints").glob("*.corrupt*"))]
    for step in _steps(run):
        try:
            return read(_path(run, step), optimizer)
        except CheckpointError as error:
            reasons.append(str(error))
            say(f"{error}; falling back to the checkpoint before it")
            if quarantine:
                _set_aside(_path(run, step))
    if reasons:
        raise CheckpointError(f"{run}: no checkpoint can be trusted ({reasons[-1]}); start again with another --run")
    return None


def verify(folder: Path) -> str:
    """Check every byte of a checkpoint; returns the digest of its logical state.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    try:
        manifest = _read_manifest(folder)
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))  # desktops leave those
        if found != sorted([*_FILES, _MANIFEST]):
            raise CheckpointError(
                f"{folder}: holds {', '.join(found)}; must hold exactly {', '.join([*_FILES, _MANIFEST])}"
            )
        for name in _FILES:
            if sha256(folder / name) != manifest["files"][name]["sha256"]:
                raise CheckpointError(f"{folder / name}: SHA-256 differs from the manifest")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None
    return str(manifest["digest"])


def read(folder: Path, optimizer: bool = True) -> Checkpoint:
    """Verify every byte of a checkpoint, then load it, and check the digest of what was loaded.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    expected = verify(folder)
    try:
        state = json.loads((folder / "state.json").read_bytes())
        checkpoint = Checkpoint(
            state["step"], load_file(folder / _FILES[0]), load_file(folder / _FILES[1]) if optimizer else {}, state
        )
        if folder.name != _path(folder, checkpoint.step).name:
            raise CheckpointError(f"{folder}: holds step {checkpoint.step}")
        if optimizer and digest(checkpoint) != expected:
            raise CheckpointError(f"{folder}: the digest of its tensors differs from the manifest")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
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
        optimizer.state[parameters[name]][moment] = value.to(parameters[name].device)  # fused AdamW: its `step` too


def read_config(run: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        ConfigError: if the folder is not a run folder.
    """
    file = run / "config.yaml"
    try:
        return recipes.check(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError:
        raise ConfigError(f"{run}: not a run folder, it has no config.yaml; `hmoe train RECIPE` makes one") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: damaged: {error}") from None


def open_run(run: Path, say: Say) -> tuple[RunConfig, Transformer, Tokenizer, dict[str, Any]]:
    """Config, trained model, tokenizer and the checkpoint's state of a run folder; changes nothing in it.

    Raises:
        CheckpointError: if there is no trustworthy checkpoint.
    """
    config = read_config(run)
    checkpoint = latest(run, quarantine=False, say=say, optimizer=False)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no checkpoint yet; `hmoe train` writes one every train.save_every steps")
    tokenizer = tokenizers.load(run)
    if tokenizer.fingerprint != checkpoint.state["tokenizer"]:
        raise CheckpointError(f"{run / tokenizer.file_name}: is not the tokenizer that the run was trained with")
    with torch.device("meta"):
        model = Transformer(config.model).to(next(iter(checkpoint.model.values())).dtype)
    model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    restore(checkpoint, model)
    return config, model.eval(), tokenizer, checkpoint.state


def published(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, newest first."""
    return [_path(run, step) for step in _steps(run)]


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file({n: t.contiguous() for n, t in checkpoint.model.items()}, folder / _FILES[0])
    save_file({n: t.contiguous() for n, t in checkpoint.optimizer.items()}, folder / _FILES[1])
    (folder / "state.json").write_bytes(_json(checkpoint.state))
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in _FILES}
    manifest = {"digest": digest(checkpoint), "files": files}
    # The manifest's own hash makes a flip in it visible too.
    manifest["manifest_sha256"] = hashlib.sha256(_json(manifest)).hexdigest()
    (folder / _MANIFEST).write_bytes(_json(manifest))
    for name in (*_FILES, _MANIFEST):
        fsync(folder / name)
    fsync(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    content = (folder / _MANIFEST).read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(content)
        own = manifest.pop("manifest_sha256")
        whole = _json({**manifest, "manifest_sha256": own}) == content
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{folder / _MANIFEST}: damaged") from None
    if not whole or own != hashlib.sha256(_json(manifest)).hexdigest():
        raise CheckpointError(f"{folder / _MANIFEST}: damaged, its own SHA-256 differs")
    return manifest


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, sort_keys=True, indent=1) + "\n").encode()


def _path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _steps(run: Path) -> list[int]:
    """Steps of the published checkpoints, newest first."""
    names = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*") if path.is_dir()]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _set_aside(folder: Path) -> None:
    number = 0
    while (target := folder.with_name(f"{folder.name}.corrupt{number or ''}")).exists():
        number += 1
    os.rename(folder, target)


def _on_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
