"""HyperMoE for a trained Hugging Face model: parts are added to its mixture-of-experts layers.

The model's own weights keep their names:

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
    count_block_experts,
    get_block_router,
    get_device_and_dtype,
    get_model_width,
    iterate_moe_blocks,
    list_expert_stacks,
    read_selection,
)
from hmoe.errors import CheckpointError, ConfigError
from hmoe.model.hyper import HyperLayer, HyperNetwork
from hmoe.model.memory import align_memory
from hmoe.runs.weights import StoredTensors
from hmoe.specs.experts import Hyper


class _Part(NamedTuple):
    """A kind of part that can be attached to a model.

    Attributes:
        title: what people call it.
        mark: key of the model's config that tells of it.
        call: function that attaches it.
    """

    title: str
    mark: str
    call: str


_PARTS = {  # by the name of the module in a block
    "hyper": _Part("HyperExperts", "hyper_experts", "attach_hyper"),
    "shared_expert": _Part("shared experts", "attached_shared_width", "attach_shared"),
}
Model = TypeVar("Model", bound=PreTrainedModel)


def attach_hyper(model: Model, spec: Hyper | None = None, folder: Path | str | None = None) -> Model:
    """Add HyperExperts (Zhao et al. 2024) to all mixture-of-experts layers of a model, in place; return it.

    Encoder and decoder get a hypernetwork each. `save_pretrained` writes the new weights beside the old ones.
    Weights that lie askew in memory, as transformers loads them, are copied to aligned memory.

    Args:
        model: a model of transformers.
        spec: sizes; None: those that the model was saved with, else the paper's.
        folder: where the model was loaded from, if its HyperExperts were saved there; None: they start anew.

    Raises:
        ConfigError: for a model that has no such layers, that has HyperExperts already, or, without `folder`,
            that was saved with such parts and lacks them now.
        CheckpointError: if the folder does not hold them.
    """
    spec = spec or Hyper(**getattr(model.config, "hyper_experts", None) or {})
    _refuse_twice(model, "hyper")
    _refuse_lost(model, folder)
    # Opened first, so that a folder without weights leaves the model as it is.
    stored = None if folder is None else StoredTensors(Path(folder))
    for stack in list_expert_stacks(model):
        blocks = list(iterate_moe_blocks(stack))
        network = HyperNetwork(get_model_width(blocks[0]), len(blocks), spec)
        network.reset_parameters()
        stack.hyper_network = network.to(**get_device_and_dtype(blocks[0]))
        for layer, block in enumerate(blocks):
            block.hyper = HyperLayer(count_block_experts(block), spec, layer)
            block.hyper.reset_parameters()
            block.hyper.to(**get_device_and_dtype(block))
            # In a tuple, which torch does not search for modules: the network is saved once, as the stack's.
            block.hyper_network = (stack.hyper_network,)
            get_block_router(block).register_forward_hook(_keep_router_output)
            block.register_forward_hook(_add_hyper)
    model.config.hyper_experts = asdict(spec)
    if stored is not None:
        load_attached_parts(model, stored, str(folder), ("hyper.", "hyper_network."))
    align_memory(model)
    return model


def attach_shared(model: Model, width: int | None = None, folder: Path | str | None = None) -> Model:
    """Add an expert that serves all tokens to every mixture-of-experts layer of a model, in place; return it.

    This is HyperMoE's baseline MoE-Share. The output matrix of the new expert is 0, so the model is the same
    function at first.

    Args:
        model: a model of transformers.
        width: hidden units; None: those that the model was saved with, else as many parameters as
            `attach_hyper` with the paper's sizes would add.
        folder: where the model was loaded from, if its shared experts were saved there; None: they are new.

    Raises:
        ConfigError: for a model that has no such layers, that has shared experts already, or, without
            `folder`, that was saved with such parts and lacks them now; for a width below 1.
        CheckpointError: if the folder does not hold them.
    """
    if width is not None and (type(width) is not int or width < 1):
        raise ConfigError(f"attach_shared: width = {width}, must be an integer of at least 1")
    _refuse_twice(model, "shared_expert")
    _refuse_lost(model, folder)
    width = width or getattr(model.config, "attached_shared_width", None)
    stored = None if folder is None else StoredTensors(Path(folder))
    for stack in list_expert_stacks(model):
        blocks = list(iterate_moe_blocks(stack))
        dim = get_model_width(blocks[0])
        units = width or _width_like_hyper(blocks, dim)
        for block in blocks:
            block.shared_expert = nn.Sequential(nn.Linear(dim, units), nn.ReLU(), nn.Linear(units, dim))
            nn.init.zeros_(block.shared_expert[2].weight)
            nn.init.zeros_(block.shared_expert[2].bias)
            block.shared_expert.to(**get_device_and_dtype(block))
            block.register_forward_hook(_add_shared)
    model.config.attached_shared_width = width
    if stored is not None:
        load_attached_parts(model, stored, str(folder), ("shared_expert.",))
    align_memory(model)
    return model


def _width_like_hyper(blocks: list[Any], dim: int) -> int:
    """Return the width at which shared experts have as many parameters as HyperExperts in these blocks."""
    spec = Hyper()
    added = spec.network_parameters(dim, len(blocks))
    added += sum(spec.layer_parameters(count_block_experts(block)) for block in blocks)
    # Two matrices and two biases have (2 dim + 1) width + dim parameters.
    return max(1, round((added / len(blocks) - dim) / (2 * dim + 1)))


# Hooks know their block by what they are given, not by closure: a copy of the model uses its own modules.
def _keep_router_output(router: nn.Module, arguments: Any, output: Any) -> None:
    router.last_output = output  # until the block has ended


def _add_hyper(block: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    router: Any = get_block_router(block)
    selected_TE = read_selection(router.last_output, count_block_experts(block))
    router.last_output = None  # its graph is not kept longer than needed
    x_TD = arguments[0].reshape(-1, arguments[0].shape[-1])
    added: torch.Tensor = block.hyper(x_TD, selected_TE, block.hyper_network[0])
    return output + added.view(output.shape)


def _add_shared(block: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = block.shared_expert(arguments[0])
    return output + added


def _refuse_twice(model: nn.Module, name: str) -> None:
    """Raise ConfigError if a part is attached already."""
    if any(hasattr(block, name) for block in iterate_moe_blocks(model)):
        raise ConfigError(
            f"this model has {_PARTS[name].title} already; attach them once, or load the model anew"
        )


def _refuse_lost(model: PreTrainedModel, folder: Path | str | None) -> None:
    """Raise ConfigError if parts would start anew in a model that was saved with trained ones.

    `from_pretrained` loads the plain model and leaves the attached weights behind; only the config tells of
    them.
    """
    if folder is not None:
        return
    for name, part in _PARTS.items():
        if hasattr(model.config, part.mark) and not any(
            hasattr(block, name) for block in iterate_moe_blocks(model)
        ):
            raise ConfigError(
                f"this model was saved with {part.title}, which it lacks now; "
                f"{part.call}(model, folder=...) loads them, or delete config.{part.mark} to go on without"
            )


def load_attached_parts(
    model: PreTrainedModel, tensors: StoredTensors, folder: str, parts: tuple[str, ...]
) -> None:
    """Copy stored values into the parameters of a model whose names have one of these parts.

    Args:
        model: a model of transformers.
        tensors: the stored values, by name.
        folder: where they are stored, for messages.
        parts: pieces of names.

    Raises:
        CheckpointError: if a tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                mixtral_name = name.replace(".mlp.", ".block_sparse_moe.")  # as transformers writes Mixtral's
                stored = tensors[mixtral_name if mixtral_name in tensors else name]
                if stored.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder}: {name} has shape {tuple(stored.shape)}, must be {tuple(parameter.shape)}"
                    )
                parameter.copy_(stored)
