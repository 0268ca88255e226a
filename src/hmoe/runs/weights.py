"""Safetensors of a Hugging Face folder -> the parameters of our model, one tensor at a time."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hmoe.errors import CheckpointError
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer
from hmoe.runs.weight_names import OUTSIDE_BLOCKS, PROJECTIONS, name_hf_weight, name_llama_weight
from hmoe.storage import open_utf8_name, read_json

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class StoredTensors:
    """The tensors of a folder by name, read when asked for; remembers which were not.

    Raises:
        CheckpointError: where there is no safetensors file, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = _files(folder)
        try:
            opened = [_open(file) for file in files]
            self._home = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder}: cannot be read: {str(error)[:200]}") from None
        self._stored_as: dict[str, str] = {}
        self.unread = {name for name in self._home if not name.endswith(".inv_freq")}

    def count_numbers(self) -> int:
        """Return how many numbers all tensors hold, without reading them."""
        homes = ((file, self._stored_as.get(name, name)) for name, file in self._home.items())
        return sum(math.prod(file.get_slice(name).get_shape()) for file, name in homes)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def rename(self, name: str, new_name: str) -> None:
        """Know a tensor, if it is stored, by another name."""
        if name in self._home:
            self._stored_as[new_name] = name
            self._home[new_name] = self._home[name]
            self.unread.add(new_name)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._home:
            raise CheckpointError(f"{self._folder}: tensor {name} is missing")
        self.unread.discard(name)
        try:
            tensor: torch.Tensor = self._home[name].get_tensor(self._stored_as.get(name, name))
        except SafetensorError as error:
            raise CheckpointError(f"{self._folder}: {name} cannot be read: {error}") from None
        if tensor.dtype not in _TYPES:  # numbers of a quantised model mean nothing without their scales
            allowed = ", ".join(str(kind).removeprefix("torch.") for kind in _TYPES)
            stored = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{self._folder}: tensor {name} is stored as {stored}, must be one of {allowed}"
            )
        return tensor


def is_head_apart(tensors: StoredTensors) -> bool:
    """Return whether a head other than the embedding is stored: transformers then uses both, tied or not."""
    embedding, head = (OUTSIDE_BLOCKS[name] for name in ("embed.weight", "head.weight"))
    if embedding not in tensors or head not in tensors:
        return False
    return not torch.equal(tensors[embedding], tensors[head])


def _open(file: Path) -> Any:
    with open_utf8_name(file) as name:
        return safe_open(name, "pt")


def fill_model(model: Transformer, tensors: StoredTensors, family: str, where: str) -> None:
    """Copy every parameter of the model from the folder, and check that the folder holds nothing else.

    Raises:
        CheckpointError: for a tensor that is missing, superfluous or of another shape.
    """
    source = _own if family == "hmoe" else _llama
    if model.config.tied and OUTSIDE_BLOCKS["embed.weight"] not in tensors:
        # One matrix, stored under its other name.
        tensors.rename(OUTSIDE_BLOCKS["head.weight"], OUTSIDE_BLOCKS["embed.weight"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = list(source(model, name, tensors))
            rows = sum(len(part) if part.ndim else 1 for part in parts)
            if rows != len(parameter) or any(
                part.ndim != parameter.ndim or part.shape[1:] != parameter.shape[1:] for part in parts
            ):
                odd = next((part for part in parts if part.shape[1:] != parameter.shape[1:]), parts[0])
                shape = (rows, *odd.shape[1:]) if odd.ndim else ()
                raise CheckpointError(
                    f"{where}: {name} has shape {shape}, config.json says {tuple(parameter.shape)}"
                )
            places: Any = parameter.split([len(part) for part in parts])  # type: ignore[no-untyped-call]
            for part, place in zip(parts, places, strict=True):
                place.copy_(part)
    if model.config.tied:
        tensors.unread.discard("lm_head.weight")
    if tensors.unread:
        raise CheckpointError(
            f"{where}: {len(tensors.unread)} tensors have no place in the model, such as {min(tensors.unread)}"
        )


def _own(model: Transformer, name: str, tensors: StoredTensors) -> Iterator[torch.Tensor]:
    yield tensors[name_hf_weight(name)]


def _llama(model: Transformer, name: str, tensors: StoredTensors) -> Iterator[torch.Tensor]:
    """Yield one parameter from the LLaMA family's, in parts to be stacked by rows; w_down is transposed."""
    llama_name = name_llama_weight(name)
    if llama_name is not None:
        yield tensors[llama_name]
        return
    _, index, inner = name.split(".", 2)
    layer = f"model.layers.{index}."
    ffn = model.blocks[int(index)].ffn
    part = inner.removeprefix("ffn.")
    sparse = layer + ("block_sparse_moe." if f"{layer}block_sparse_moe.gate.weight" in tensors else "mlp.")
    if part == "router.weight":
        yield tensors[f"{sparse}gate.weight"]
        return
    turn: Callable[[torch.Tensor], torch.Tensor] = (lambda w: w.T) if part == "w_down" else (lambda w: w)
    if not isinstance(ffn, MoE):
        yield turn(tensors[f"{layer}mlp.{PROJECTIONS[part][0]}.weight"])
    elif f"{sparse}experts.gate_up_proj" in tensors:
        yield from _fused(tensors, f"{sparse}experts.", part)
    else:
        style = 1 if f"{sparse}experts.0.w1.weight" in tensors else 0
        for expert in range(len(ffn.widths)):
            yield turn(tensors[f"{sparse}experts.{expert}.{PROJECTIONS[part][style]}.weight"])


def _fused(tensors: StoredTensors, experts: str, part: str) -> Iterator[torch.Tensor]:
    """Yield experts from gate_up_proj (E, 2h, D) and down_proj (E, D, h), as transformers 5 holds them."""
    name = experts + ("down_proj" if part == "w_down" else "gate_up_proj")
    fused = tensors[name]
    if fused.ndim != 3 or 0 in fused.shape or (part != "w_down" and fused.shape[1] % 2):
        raise CheckpointError(f"{name} has shape {tuple(fused.shape)}, which holds no experts")
    yield from (expert.T if part == "w_down" else expert.chunk(2)[part == "w_up"] for expert in fused)


def _files(folder: Path) -> list[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        other = [path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
        hint = f"; {other[0]} is a pickle, which could run code: convert it to safetensors" if other else ""
        raise CheckpointError(f"{folder}: no model.safetensors{hint}")
    try:
        named: Any = read_json(index)["weight_map"].values()
        names = sorted(set(named))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index}: damaged") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names {name!r}, must be .safetensors files of its own folder")
    return [folder / name for name in names]
