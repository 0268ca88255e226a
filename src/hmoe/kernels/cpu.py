"""The CPU backend: the C++ library where it was built and knows the dtype, else the loop of library GEMMs."""

import torch

from hmoe.kernels import loop, native
from hmoe.kernels.layer import Backend, Gradients, Layer, Saved


def forward_cpu(layer: Layer, room: int) -> tuple[torch.Tensor, Saved]:
    """Compute a layer's output by the library or the loop; arguments as in `layer.Backend`."""
    run = native.forward_native if native.can_use_library(layer.x_TD) else loop.forward_loop
    return run(layer, room)


def backward_cpu(layer: Layer, saved: Saved, dy_TD: torch.Tensor, weights: bool) -> Gradients:
    """Compute a layer's gradients by what computed its output; arguments as in `layer.Backend`."""
    run = native.backward_native if native.can_use_library(layer.x_TD) else loop.backward_loop
    return run(layer, saved, dy_TD, weights)


def explain_cpu_refusal(layer: Layer) -> str | None:
    """Return why the CPU backend cannot compute this layer, or None."""
    device = layer.x_TD.device.type
    return None if device == "cpu" else f"it is for the CPU, the tensors are on {device}"


def count_cpu_rows(x_TD: torch.Tensor, num_pairs: int) -> int:
    """Return how many rows of pre-activations are kept for an expert with so many pairs."""
    # The library pads in its own scratch memory only; the loop also keeps its padding.
    return num_pairs if native.can_use_library(x_TD) else loop.count_loop_rows(x_TD, num_pairs)


BACKEND = Backend(forward_cpu, backward_cpu, explain_cpu_refusal, count_cpu_rows)
