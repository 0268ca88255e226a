"""A model with random weights whose experts were never all in memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from hmoe.model.meta import build_on_meta
from hmoe.model.transformer import Transformer
from hmoe.parallel.expert_homes import list_expert_homes
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_layer import WEIGHTS
from hmoe.specs.model import ModelSpec


def build_offloaded_transformer(
    config: ModelSpec, seed: int, device: torch.device, offloads: Callable[[Transformer], ExpertOffload]
) -> Transformer:
    """Return a model with the weights of `build_transformer`, whose experts lie elsewhere.

    Weights are drawn on the CPU, a block (or the embedding, or the head) at a time.

    Args:
        config: of the model.
        seed: of the weights.
        device: that computes.
        offloads: makes the experts of the model lie elsewhere, which it has on the meta device.
    """
    with build_on_meta():
        model = Transformer(config).to(torch.float32)
    experts = take_experts(model)
    model.to_empty(device="cpu")
    put_experts(experts)
    with offloads(model).look_at_all(changes=True):
        for name in model.list_parts():
            model.init_weights(seed, name)
    experts = take_experts(model)
    model.to(device)
    put_experts(experts)
    return model


class OffloadForReading:
    """Gives a model that is opened memory for all but its experts, which lie in a file.

    Args:
        folder: for the file.
        most_bytes: of the device's memory for weights of experts.
        dtype: of all weights; None: as the model has them.

    Attributes:
        offload: of the experts, once the model was given memory.
    """

    def __init__(self, folder: Path, most_bytes: int, dtype: torch.dtype | None = None) -> None:
        self._folder, self._most_bytes, self._dtype = folder, most_bytes, dtype
        self.offload: ExpertOffload | None = None

    def __enter__(self) -> "OffloadForReading":
        """Return the object itself; the experts are given up at the end of the context."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give up the experts: the model computes no more."""
        if self.offload is not None:
            self.offload.close()

    def __call__(self, model: Transformer) -> AbstractContextManager[object]:
        """Give memory to a model on the meta device, and return a context in which its weights may be written."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._dtype is not None:
            model.to(self._dtype)
        model.requires_grad_(False)
        experts = take_experts(model)
        model.to_empty(device=device)
        put_experts(experts)
        self.offload = ExpertOffload(model, self._folder, device, self._most_bytes, reads_only=True)
        return self.offload.look_at_all(changes=True)


_Experts = list[tuple[nn.Module, dict[str, nn.Parameter | None]]]


def take_experts(model: nn.Module) -> _Experts:
    """Take this process's experts out of a model, so that what is done to all weights is not done to them."""
    experts: _Experts = []
    for home in list_expert_homes(model):
        experts.append((home.module, {name: home.module._parameters[name] for name in WEIGHTS}))
        for name in WEIGHTS:
            home.module._parameters[name] = None  # by which it keeps its place among the others
    return experts


def put_experts(experts: _Experts) -> None:
    """Put experts that were taken out back."""
    for module, weights in experts:
        module._parameters.update(weights)
