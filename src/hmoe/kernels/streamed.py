"""Experts whose weights are not all in the device's memory: each is asked for when its turn comes."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from hmoe.kernels.layer import ExpertSource, Layer, Saved
from hmoe.kernels.loop import backward_to_source, count_loop_rows, forward_from_source


class StreamedExperts(ExpertSource, Protocol):
    """A source that is told beforehand which experts a pass needs."""

    @property
    def trains(self) -> bool:
        """Whether gradients of the weights are wanted."""
        ...

    def begin_pass(self, x_TD: torch.Tensor, num_tokens: Sequence[int], backward: bool) -> None:
        """Say what a pass reads, and how many tokens each expert has; those with any come in their order."""
        ...


def stream_experts(
    x_TD: torch.Tensor,
    token_N: torch.Tensor,
    gate_N: torch.Tensor,
    num_tokens_E: torch.Tensor,
    widths: Sequence[int],
    source: StreamedExperts,
) -> torch.Tensor:
    """Return what `expert_ffn` returns, of experts whose weights come from a source; backend `loop`.

    Args:
        x_TD, token_N, gate_N, num_tokens_E, widths: as `expert_ffn` takes them.
        source: of the weights, and where their gradients go in the backward pass.
    """
    trains, counts = source.trains, num_tokens_E.tolist()
    source.begin_pass(x_TD, counts, backward=False)
    if not (torch.is_grad_enabled() and (trains or x_TD.requires_grad or gate_N.requires_grad)):
        tensors = [tensor.contiguous() for tensor in (x_TD, token_N, gate_N, num_tokens_E)]
        return forward_from_source(_make_layer(tensors, tuple(widths)), 0, source)[0]
    room = sum(count_loop_rows(x_TD, n) * h for n, h in zip(counts, widths, strict=True) if n)
    # Something that is differentiated, so that the weights get gradients though x may need none.
    anchor = x_TD.new_zeros(0, requires_grad=trains)
    y_TD: torch.Tensor = _Streamed.apply(  # type: ignore[no-untyped-call]
        x_TD, gate_N, anchor, token_N, num_tokens_E, tuple(widths), source, room
    )
    return y_TD


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        gate_N: torch.Tensor,
        anchor: torch.Tensor,
        token_N: torch.Tensor,
        num_tokens_E: torch.Tensor,
        widths: tuple[int, ...],
        source: StreamedExperts,
        room: int,
    ) -> torch.Tensor:
        tensors = [tensor.contiguous() for tensor in (x_TD, token_N, gate_N, num_tokens_E)]
        y_TD, saved = forward_from_source(_make_layer(tensors, widths), room, source)
        ctx.save_for_backward(*tensors, *saved)
        ctx.widths, ctx.source = widths, source
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, pre_gate, pre_up, order_N = ctx.saved_tensors
        layer, saved = _make_layer(tensors, ctx.widths), Saved(pre_gate, pre_up, order_N)
        source: StreamedExperts = ctx.source
        source.begin_pass(layer.x_TD, layer.num_tokens_E.tolist(), backward=True)
        dx_TD, dgate_N = backward_to_source(layer, saved, dy_TD.contiguous(), source, source.trains)
        return dx_TD, dgate_N, *(None,) * 6


def _make_layer(tensors: Sequence[torch.Tensor], widths: tuple[int, ...]) -> Layer:
    """Return a layer without weights."""
    x_TD, token_N, gate_N, num_tokens_E = tensors
    none = x_TD.new_empty(0, x_TD.shape[1])
    return Layer(x_TD, token_N, gate_N, num_tokens_E, none, none, none, widths)
