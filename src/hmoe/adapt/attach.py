"""HyperMoE for a trained Hugging Face model: parts are added to its mixture-of-experts layers, its own weights keep their names.

    model = attach_hyper(AutoModelForSeq2SeqLM.from_pretrained("google/switch-base-8"))

Known are Switch Transformers, Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, and GPT-2 after `duplicate_mlps`.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hmoe.errors import CheckpointError, ConfigError
from hmoe.model.hyper import HyperLayer, HyperNetwork
from hmoe.model.memory import align_memory
from hmoe.runs.weights import Tensors
from hmoe.specs.experts import Hyper

KNOWN = (
    "SwitchTransformersSparseMLP",
    "MixtralSparseMoeBlock",
    "Qwen2MoeSparseMoeBlock",
    "Qwen3MoeSparseMoeBlock",
    "OlmoeSparseMoeBlock",
    "DuplicatedMLP",
)


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
        blocks = list(_blocks(stack))
        dim = _width(blocks[0])
        network = HyperNetwork(dim, len(blocks), spec)
        network.reset_parameters()
        stack.hyper_network = network.to(**_like(blocks[0]))
        for number, block in enumerate(blocks):
            block.hyper = HyperLayer(_num_experts(block), spec, number)
            block.hyper.reset_parameters()
            block.hyper.to(**_like(block))
            block.hyper_network = (stack.hyper_network,)  # in a tuple, so that it is the stack's parameter only
            _router(block).register_forward_hook(_hear)
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
        blocks = list(_blocks(stack))
        dim, spec = _width(blocks[0]), Hyper()
        added = spec.network_parameters(dim, len(blocks)) + sum(
            spec.layer_parameters(_num_experts(block)) for block in blocks
        )
        units = width or max(1, round((added / len(blocks) - dim) / (2 * dim + 1)))
        for block in blocks:
            block.shared_expert = nn.Sequential(nn.Linear(dim, units), nn.ReLU(), nn.Linear(units, dim))
            nn.init.zeros_(block.shared_expert[2].weight)
            nn.init.zeros_(block.shared_expert[2].bias)
            block.shared_expert.to(**_like(block))
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
    router: Any = _router(block)
    selected_TE = _selected(router.heard, _num_experts(block))
    router.heard = None
    x_TD = arguments[0].reshape(-1, arguments[0].shape[-1])
    added: torch.Tensor = block.hyper(x_TD, selected_TE, block.hyper_network[0])
    return output + added.view(output.shape)


def _add_shared(block: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = block.shared_expert(arguments[0])
    return output + added


def _selected(output: tuple[torch.Tensor, ...], num_experts: int) -> torch.Tensor:
    """Boolean (T, E), from what a router returns: (mask, probabilities, logits) in Switch, where a token that a full expert
    refused has selected it all the same; (logits, gates, experts) elsewhere."""
    first, _, last = output
    chosen_TK = last.argmax(-1).reshape(-1, 1) if first.shape == last.shape else last.reshape(-1, last.shape[-1])
    selected_TE = torch.zeros(len(chosen_TK), num_experts, dtype=torch.bool, device=last.device)
    return selected_TE.scatter(1, chosen_TK, True)


def expert_stacks(model: PreTrainedModel) -> list[Any]:
    """Encoder and decoder, or the decoder alone; those that have experts.

    Raises:
        ConfigError: if none has experts of a kind that is known.
    """
    both = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model.base_model]
    stacks = [stack for stack in both if any(True for _ in _blocks(stack))]
    if not stacks:
        raise ConfigError(
            f"{type(model).__name__} has no mixture-of-experts layer of a kind that is known: {', '.join(KNOWN)}"
        )
    return stacks


def _blocks(stack: nn.Module) -> Iterator[Any]:
    for module in stack.modules():
        if type(module).__name__ in KNOWN:
            yield module


def _router(block: Any) -> nn.Module:
    router: nn.Module = block.router if hasattr(block, "router") else block.gate
    return router


def _matrix(block: Any) -> torch.Tensor:
    router: Any = _router(block)
    weight: torch.Tensor = router.classifier.weight if hasattr(router, "classifier") else router.weight
    return weight


def _num_experts(block: Any) -> int:
    return len(_matrix(block))


def _width(block: Any) -> int:
    return _matrix(block).shape[1]


def _like(block: Any) -> dict[str, Any]:
    """Device and type of the block's experts."""
    weight = next(block.experts.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


def _refuse_twice(model: nn.Module, name: str) -> None:
    if any(hasattr(block, name) for block in _blocks(model)):
        raise ConfigError(f"this model has {_PARTS[name].title} already; attach them once, or load the model anew")


def _refuse_lost(model: PreTrainedModel, folder: Path | str | None) -> None:
    """Raise ConfigError where parts would start anew in a model that was saved with trained ones, which loading left behind."""
    if folder is not None:
        return
    for name, part in _PARTS.items():
        if hasattr(model.config, part.mark) and not any(hasattr(block, name) for block in _blocks(model)):
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
