"""HyperMoE for a trained Hugging Face model: parts are added to its mixture-of-experts layers, its own weights keep their names.

    model = attach_hyper(AutoModelForSeq2SeqLM.from_pretrained("google/switch-base-8"))

Known are Switch Transformers, Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, and GPT-2 after `duplicate_mlps`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hmoe.adapt.moe_blocks import (
    count_experts,
    expert_stacks,
    get_matching_kind,
    get_model_width,
    get_router,
    iterate_blocks,
    read_selection,
)
from hmoe.errors import CheckpointError, ConfigError
from hmoe.model.hyper import HyperLayer, HyperNetwork
from hmoe.model.memory import align_memory
from hmoe.runs.weights import Tensors
from hmoe.specs.experts import Hyper


class _Part(NamedTuple):
    """What can be attached: how people call it, where the config tells of it, what attaches it."""

    title: str
    mark: str
    call: str


_PARTS = {  # by the module's name in a block
    "hyper": _Part("HyperExperts", "hyper_experts", "attach_hyper"),
    "shared_expert": _Part("shared experts", "attached_shared_width", "attach_shared"),
}
Model = TypeVar("Model", bound=PreTrainedModel)


def attach_hyper(model: Model, spec: Hyper | None = None, folder: Path | str | None = None) -> Model:
    """Add HyperExperts to every mixture-of-experts layer of a model, in place (Zhao et al. 2024).

    Encoder and decoder get a hypernetwork each. `save_pretrained` writes the new weights beside the old ones. Weights that lie
    askew in memory, as transformers loads them, are copied to aligned memory.

    Args:
        model: of transformers.
        spec: sizes; None: those that the model was saved with, else the paper's.
        folder: where the model was loaded from, if its HyperExperts were saved there; None: they start anew.

    Raises:
        ConfigError: for a model without such layers, that has HyperExperts already, or, without `folder`, that was saved with
            such parts and lacks them now.
        CheckpointError: if the folder does not hold them.
    """
    spec = spec or Hyper(**getattr(model.config, "hyper_experts", None) or {})
    _refuse_twice(model, "hyper")
    _refuse_lost(model, folder)
    stored = None if folder is None else Tensors(Path(folder))  # before the model is changed
    for stack in expert_stacks(model):
        blocks = list(iterate_blocks(stack))
        dim = get_model_width(blocks[0])
        network = HyperNetwork(dim, len(blocks), spec)
        network.reset_parameters()
        stack.hyper_network = network.to(**get_matching_kind(blocks[0]))
        for number, block in enumerate(blocks):
            block.hyper = HyperLayer(count_experts(block), spec, number)
            block.hyper.reset_parameters()
            block.hyper.to(**get_matching_kind(block))
            block.hyper_network = (stack.hyper_network,)  # in a tuple, so that it is the stack's parameter only
            get_router(block).register_forward_hook(_hear)
            block.register_forward_hook(_add_hyper)
    model.config.hyper_experts = asdict(spec)
    if stored is not None:
        load_parts(model, stored, str(folder), ("hyper.", "hyper_network."))
    align_memory(model)
    return model


def attach_shared(model: Model, width: int | None = None, folder: Path | str | None = None) -> Model:
    """Add to every mixture-of-experts layer an expert that serves all tokens: the baseline MoE-Share, in place.

    Args:
        model: of transformers.
        width: hidden units; None: those that the model was saved with, else as many parameters as `attach_hyper` with the
            paper's sizes would add.
        folder: as in `attach_hyper`.

    Raises:
        ConfigError: for a model without such layers, that has shared experts already, or, without `folder`, was saved with
            such parts and lacks them now; for a width below 1.
        CheckpointError: if the folder does not hold them.
    """
    if width is not None and (type(width) is not int or width < 1):
        raise ConfigError(f"attach_shared: width = {width}, must be an integer of at least 1")
    _refuse_twice(model, "shared_expert")
    _refuse_lost(model, folder)
    width = width or getattr(model.config, "attached_shared_width", None)
    stored = None if folder is None else Tensors(Path(folder))
    for stack in expert_stacks(model):
        blocks = list(iterate_blocks(stack))
        dim, spec = get_model_width(blocks[0]), Hyper()
        added = spec.network_parameters(dim, len(blocks)) + sum(
            spec.layer_parameters(count_experts(block)) for block in blocks
        )
        units = width or max(1, round((added / len(blocks) - dim) / (2 * dim + 1)))
        for block in blocks:
            block.shared_expert = nn.Sequential(nn.Linear(dim, units), nn.ReLU(), nn.Linear(units, dim))
            nn.init.zeros_(block.shared_expert[2].weight)
            nn.init.zeros_(block.shared_expert[2].bias)
            block.shared_expert.to(**get_matching_kind(block))
            block.register_forward_hook(_add_shared)
    model.config.attached_shared_width = width
    if stored is not None:
        load_parts(model, stored, str(folder), ("shared_expert.",))
    align_memory(model)
    return model


def _hear(router: nn.Module, arguments: Any, output: Any) -> None:
    """Keep what a router says until its block has ended."""
    router.heard = output


def _add_hyper(block: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Hooks know their block by what they are given, not by closure: a copy of the model uses its own modules."""
    router: Any = get_router(block)
    selected_TE = read_selection(router.heard, count_experts(block))
    router.heard = None
    x_TD = arguments[0].reshape(-1, arguments[0].shape[-1])
    added: torch.Tensor = block.hyper(x_TD, selected_TE, block.hyper_network[0])
    return output + added.view(output.shape)


def _add_shared(block: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = block.shared_expert(arguments[0])
    return output + added


def _refuse_twice(model: nn.Module, name: str) -> None:
    if any(hasattr(block, name) for block in iterate_blocks(model)):
        raise ConfigError(f"this model has {_PARTS[name].title} already; attach them once, or load the model anew")


def _refuse_lost(model: PreTrainedModel, folder: Path | str | None) -> None:
    """Raise ConfigError where parts would start anew in a model that was saved with trained ones, which loading left behind."""
    if folder is not None:
        return
    for name, part in _PARTS.items():
        if hasattr(model.config, part.mark) and not any(hasattr(block, name) for block in iterate_blocks(model)):
            raise ConfigError(
                f"this model was saved with {part.title}, which it lacks now; {part.call}(model, folder=...) loads them, "
                f"or delete config.{part.mark} to go on without"
            )


def load_parts(model: PreTrainedModel, tensors: Tensors, folder: str, parts: tuple[str, ...]) -> None:
    """Copy the parameters whose names have one of these parts.

    Raises:
        CheckpointError: if one is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                written = name.replace(".mlp.", ".block_sparse_moe.")  # as transformers writes Mixtral's
                stored = tensors[written if written in tensors else name]
                if stored.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder}: {name} has shape {tuple(stored.shape)}, must be {tuple(parameter.shape)}"
                    )
                parameter.copy_(stored)
