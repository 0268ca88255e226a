"""What passes between the door and its backends: the arguments of one layer, what is saved, the gradients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch


class Layer(NamedTuple):
    """Arguments of `hmoe.kernels.expert_ffn`, contiguous when a backend gets them."""

    x_TD: torch.Tensor
    token_N: torch.Tensor
    gate_N: torch.Tensor
    num_tokens_E: torch.Tensor
    w_gate_FD: torch.Tensor
    w_up_FD: torch.Tensor
    w_down_FD: torch.Tensor
    widths: Sequence[int]


def make_contiguous(tensors: Sequence[torch.Tensor], widths: Sequence[int]) -> Layer:
    """Make a layer whose tensors are contiguous, as the backends expect."""
    x, token, gate, count, w_gate, w_up, w_down = (t.contiguous() for t in tensors)
    return Layer(x, token, gate, count, w_gate, w_up, w_down, tuple(widths))


class Saved(NamedTuple):
    """What the backward pass needs in addition to the arguments.

    Attributes:
        pre_gate, pre_up: outputs of the gate and up projections, flat, expert after expert, [rows][units];
            the door says how much room they get. Empty when no backward pass will come.
        order_N: pairs grouped by token.
    """

    # Each expert has an own number of rows and of units, so no letters of a shape fit the first two.
    pre_gate: torch.Tensor
    pre_up: torch.Tensor
    order_N: torch.Tensor


Matrices = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class ExpertSource(Protocol):
    """Where the weights of a layer's experts come from, and where their gradients go, one expert after another."""

    def read_weights(self, expert: int) -> Matrices:
        """Return an expert's three matrices (h, D), which stay as they are until the next call."""
        ...

    def open_gradients(self, expert: int) -> Matrices:
        """Return memory of the same shapes for the gradients of an expert."""
        ...

    def close_gradients(self, expert: int) -> None:
        """Take the gradients of an expert, which are there now."""
        ...


class Gradients(NamedTuple):
    """Gradients by name; those of the weights are empty when they were not asked for."""

    dx_TD: torch.Tensor
    dgate_N: torch.Tensor
    dw_gate_FD: torch.Tensor
    dw_up_FD: torch.Tensor
    dw_down_FD: torch.Tensor


class Backend(NamedTuple):
    """One way to compute a layer.

    Attributes:
        forward: (layer, room) -> (y_TD, Saved); room is the elements of each pre-activation in `Saved`, 0
            where no backward pass will come.
        backward: (layer, saved, dy_TD, whether the weights' gradients are wanted) -> Gradients.
        refusal: (layer) -> why it cannot compute this layer, or None.
        rows: (x_TD, pairs of an expert) -> rows of pre-activations it keeps for them.
    """

    forward: Callable[[Layer, int], tuple[torch.Tensor, Saved]]
    backward: Callable[[Layer, Saved, torch.Tensor, bool], Gradients]
    refusal: Callable[[Layer], str | None]
    rows: Callable[[torch.Tensor, int], int]


def count_room(backend: Backend, layer: Layer) -> int:
    """Return the elements of one pre-activation, from the counts; waits for the device that holds them."""
    counts = layer.num_tokens_E.tolist()
    return sum(backend.rows(layer.x_TD, n) * h for n, h in zip(counts, layer.widths, strict=True) if n)


def bound_room(layer: Layer) -> int:
    """Return what `count_room` cannot exceed, from shapes alone: the counts may be on a device, or symbolic.

    A token comes to an expert at most once, so at worst the widest experts take as many tokens as there are.
    """
    num_tokens, pairs_left, bound = len(layer.x_TD), len(layer.token_N), 0
    for width in sorted(layer.widths, reverse=True):
        rows = min(num_tokens, pairs_left)
        bound, pairs_left = bound + rows * width, pairs_left - rows
    # On a CPU the loop may pad an expert's rows by an eighth, or to 32 (`loop.bucket`).
    return bound if layer.x_TD.device.type != "cpu" else bound + bound // 8 + 32 * sum(layer.widths)
