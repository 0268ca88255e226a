"""Mixture-of-experts layers of transformers' models: where they are, their router, what the router chose."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hmoe.errors import ConfigError

KNOWN = (  # names of classes: the classes themselves would load the code of every family
    "SwitchTransformersSparseMLP",
    "MixtralSparseMoeBlock",
    "Qwen2MoeSparseMoeBlock",
    "Qwen3MoeSparseMoeBlock",
    "OlmoeSparseMoeBlock",
    "DuplicatedMLP",
)


def list_expert_stacks(model: PreTrainedModel) -> list[Any]:
    """Return the encoder and the decoder of a model, or its decoder alone, but only those that have experts.

    Raises:
        ConfigError: if none has experts of a kind that is known.
    """
    two = model.config.is_encoder_decoder
    stacks = [model.get_encoder(), model.get_decoder()] if two else [model.base_model]
    stacks = [stack for stack in stacks if any(True for _ in iterate_moe_blocks(stack))]
    if not stacks:
        raise ConfigError(
            f"{type(model).__name__} has no mixture-of-experts layer of a kind that is known: {', '.join(KNOWN)}"
        )
    return stacks


def iterate_moe_blocks(stack: nn.Module) -> Iterator[Any]:
    """Yield the mixture-of-experts layers of a model or a part of it, in order."""
    for module in stack.modules():
        if type(module).__name__ in KNOWN:
            yield module


def get_block_router(block: Any) -> nn.Module:
    """Return the router of a mixture-of-experts layer."""
    router: nn.Module = block.router if hasattr(block, "router") else block.gate
    return router


def _router_weight(block: Any) -> torch.Tensor:
    router: Any = get_block_router(block)
    weight: torch.Tensor = router.classifier.weight if hasattr(router, "classifier") else router.weight
    return weight


def count_block_experts(block: Any) -> int:
    """Return the number of experts of a layer."""
    return len(_router_weight(block))


def get_model_width(block: Any) -> int:
    """Return the number of features of a token that a layer reads."""
    return _router_weight(block).shape[1]


def get_device_and_dtype(block: Any) -> dict[str, Any]:
    """Return device and dtype of a layer's experts, as arguments of `Module.to`."""
    weight = next(block.experts.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


def read_selection(output: tuple[torch.Tensor, ...], num_experts: int) -> torch.Tensor:
    """Return which experts each token selected, as a boolean (T, E).

    Args:
        output: what a router returned: (mask, probabilities, logits) in Switch, else (logits, gates,
            experts).
        num_experts: E.
    """
    last = output[-1]
    # Switch's mask is not used: a token that a full expert refused has selected it all the same.
    expert_TK = (
        last.argmax(-1).reshape(-1, 1) if last.is_floating_point() else last.reshape(-1, last.shape[-1])
    )
    selected_TE = torch.zeros(len(expert_TK), num_experts, dtype=torch.bool, device=last.device)
    return selected_TE.scatter(1, expert_TK, True)
