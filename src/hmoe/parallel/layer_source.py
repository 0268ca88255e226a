"""What a layer's passes ask of experts that lie in storage, one after another."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from hmoe.kernels.layer import Matrices
from hmoe.parallel.expert_store import Weights
from hmoe.parallel.offloaded_layer import OffloadedLayer


class Passes(Protocol):
    """Who brings experts for the passes of all layers (`hmoe.parallel.offload`)."""

    def begin_pass(self, place: int, x_TD: torch.Tensor, busy: Sequence[int], backward: bool) -> None:
        """Plan what is needed from a layer's pass over x on."""
        ...

    def use(self, place: int, expert: int) -> Weights:
        """Return an expert's weights on the device, until the next call."""
        ...

    def record_event(self) -> Callable[[], None] | None:
        """Return what waits until the device has done all that it was asked for so far; None: it has."""
        ...

    def submit(self, task: Callable[[], None]) -> None:
        """Let another thread do something."""
        ...


class LayerSource:
    """Gives a layer's passes the weights of one expert after another, and takes their gradients."""

    def __init__(self, passes: Passes, place: int, layer: OffloadedLayer) -> None:
        self._passes, self._place, self._layer = passes, place, layer
        self._dtype = torch.float32
        self._gradients: list[torch.Tensor] = []

    @property
    def trains(self) -> bool:
        """Whether the layer's experts have gradients."""
        return self._layer.trains

    def begin_pass(self, x_TD: torch.Tensor, num_tokens: Sequence[int], backward: bool) -> None:
        """Say what a pass reads, and how many tokens each expert has; they are asked for in their order."""
        self._dtype = x_TD.dtype
        busy = [expert for expert, count in enumerate(num_tokens) if count]
        if backward:
            self._layer.begin_backward()
        self._passes.begin_pass(self._place, x_TD, busy, backward)

    def read_weights(self, expert: int) -> Matrices:
        """Return an expert's three matrices (h, D) in the type of the pass, until the next call."""
        gate, up, down = self._passes.use(self._place, expert)
        if self._dtype == gate.dtype:
            return gate, up, down
        converted = [self._layer.allocate(expert, self._dtype) for _ in range(3)]
        for values, weights in zip(converted, (gate, up, down), strict=True):
            values.copy_(weights)
        gate, up, down = converted
        return gate, up, down

    def open_gradients(self, expert: int) -> Matrices:
        """Return memory for the gradients of an expert."""
        gate, up, down = self._gradients = [self._layer.allocate(expert, self._dtype) for _ in range(3)]
        return gate, up, down

    def close_gradients(self, expert: int) -> None:
        """Let the gradients of an expert be added to those that are stored."""
        gradients, self._gradients = self._gradients, []
        layer, is_first, wait = self._layer, self._layer.num_passes == 1, self._passes.record_event()

        def write() -> None:
            if wait is not None:
                wait()
            layer.write_gradients(expert, gradients, is_first)

        self._passes.submit(write)
