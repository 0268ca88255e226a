"""A model with random weights whose experts were never all in memory."""

from pathlib import Path

import torch
from torch import nn

from hmoe.model.meta import build_on_meta
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_layer import WEIGHTS
from hmoe.specs.model import ModelSpec


def build_offloaded_transformer(
    config: ModelSpec,
    seed: int,
    device: torch.device,
    folder: Path | None,
    most_bytes: int,
) -> tuple[Transformer, ExpertOffload]:
    """Return a model with the weights of `build_transformer`, and its experts, which lie elsewhere.

    Weights are drawn on the CPU, a block (or the embedding, or the head) at a time.

    Args:
        config: of the model.
        seed: of the weights.
        device: that computes.
        folder, most_bytes: as `ExpertOffload` takes them.
    """
    with build_on_meta():
        model = Transformer(config).to(torch.float32)
    experts = _take_experts(model)
    model.to_empty(device="cpu")
    _put_experts(experts)
    offload = ExpertOffload(model, folder, device, most_bytes)
    with offload.look_at_all(changes=True):
        for name in model.list_parts():
            model.init_weights(seed, name)
    experts = _take_experts(model)
    model.to(device)
    _put_experts(experts)
    return model, offload


_Experts = list[tuple[MoE, dict[str, nn.Parameter | None]]]


def _take_experts(model: nn.Module) -> _Experts:
    """Take the experts' weights out of a model, so that what is done to all weights is not done to them."""
    experts: _Experts = []
    for layer in model.modules():
        if isinstance(layer, MoE):
            experts.append((layer, {name: layer._parameters[name] for name in WEIGHTS}))
            for name in WEIGHTS:
                layer._parameters[name] = None  # by which it keeps its place among the others
    return experts


def _put_experts(experts: _Experts) -> None:
    for layer, weights in experts:
        layer._parameters.update(weights)
