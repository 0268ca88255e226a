"""The custom operators `hmoe::expert_ffn` and its backward: what torch.compile, FSDP2 and checkpointing see.

Both have fake implementations from shapes alone, so a compiled graph holds them whole; the room for the
pre-activations is an argument, so the graph's shapes are those of the run. The backend's name is one too;
empty, it is chosen when the operator runs, since a graph is traced without the tensors that decide.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hmoe.kernels import choice
from hmoe.kernels.layer import Backend, Gradients, Layer, Saved, make_contiguous

FiveTensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
FourTensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _find_backend(name: str, layer: Layer) -> Backend:
    """Return the backend that the operator's argument names, or chooses if empty."""
    resolved = choice.resolve_backend(name, layer)
    if not name:  # from a compiled graph; otherwise the door has checked the counts
        choice.check_counts(layer, resolved)
    # The definition is no operator.
    return choice.get_backend("loop" if resolved == "reference" else resolved)


@torch.library.custom_op("hmoe::expert_ffn", mutates_args=())
def forward_op(
    x_TD: torch.Tensor,
    token_N: torch.Tensor,
    gate_N: torch.Tensor,
    num_tokens_E: torch.Tensor,
    w_gate_FD: torch.Tensor,
    w_up_FD: torch.Tensor,
    w_down_FD: torch.Tensor,
    widths: Sequence[int],
    room: int,
    backend: str,
) -> FourTensors:
    """Compute (y_TD, pre_gate, pre_up, order_N) of a layer; pre-activations have `room` elements.

    Arguments as in `hmoe.kernels.expert_ffn`; `backend` is empty where the operator shall choose.
    """
    tensors = (x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD)
    layer = make_contiguous(tensors, widths)
    y_TD, saved = _find_backend(backend, layer).forward(layer, room)
    return y_TD, *saved


@forward_op.register_fake
def _(*arguments: Any) -> FourTensors:
    layer, room = Layer(*arguments[:8]), arguments[8]
    x_TD = layer.x_TD
    return (
        x_TD.new_empty(x_TD.shape),
        x_TD.new_empty(room),
        x_TD.new_empty(room),
        torch.empty_like(layer.token_N),
    )


@torch.library.custom_op("hmoe::expert_ffn_backward", mutates_args=())
def backward_op(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    token_N: torch.Tensor,
    gate_N: torch.Tensor,
    num_tokens_E: torch.Tensor,
    w_gate_FD: torch.Tensor,
    w_up_FD: torch.Tensor,
    w_down_FD: torch.Tensor,
    widths: Sequence[int],
    pre_gate: torch.Tensor,
    pre_up: torch.Tensor,
    order_N: torch.Tensor,
    weights: bool,
    backend: str,
) -> FiveTensors:
    """Compute (dx_TD, dgate_N, dw_gate_FD, dw_up_FD, dw_down_FD), the last three empty unless `weights`."""
    tensors = (x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD)
    layer = make_contiguous(tensors, widths)
    saved = Saved(pre_gate, pre_up, order_N)
    gradients = _find_backend(backend, layer).backward(layer, saved, dy_TD.contiguous(), weights)
    return gradients.dx_TD, gradients.dgate_N, gradients.dw_gate_FD, gradients.dw_up_FD, gradients.dw_down_FD


@backward_op.register_fake
def _(dy_TD: torch.Tensor, *arguments: Any) -> FiveTensors:
    layer, weights = Layer(*arguments[:8]), arguments[11]
    all_weights = (layer.w_gate_FD, layer.w_up_FD, layer.w_down_FD)
    dw_gate, dw_up, dw_down = (w.new_empty(w.shape if weights else (0,)) for w in all_weights)
    return layer.x_TD.new_empty(layer.x_TD.shape), torch.empty_like(layer.gate_N), dw_gate, dw_up, dw_down


def _refuse_second(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "second derivatives of expert_ffn: computed by backend = 'reference' only, this is "
        f"{ctx.backend!r}; set MoE.backend"
    )


def _keep_backend(ctx: Any, inputs: tuple[Any, ...], output: FiveTensors) -> None:
    ctx.backend = inputs[-1]


backward_op.register_autograd(_refuse_second, setup_context=_keep_backend)


def _save(ctx: Any, inputs: tuple[Any, ...], output: FourTensors) -> None:
    *tensors, widths, _, backend = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.widths, ctx.backend = widths, backend
    # Else every backward pass makes zeros for the three outputs that nobody differentiates.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy_TD: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
    if dy_TD is None:
        return (None,) * 10
    *tensors, pre_gate, pre_up, order_N = ctx.saved_tensors
    needed = dict(zip(Layer._fields, ctx.needs_input_grad, strict=False))
    # All weights or none: no backend has a way to compute some of them.
    weights = needed["w_gate_FD"] or needed["w_up_FD"] or needed["w_down_FD"]
    saved = (pre_gate, pre_up, order_N)
    gradients = Gradients(*backward_op(dy_TD, *tensors, ctx.widths, *saved, weights, ctx.backend))
    # In the order of the operator's arguments: token_N, num_tokens_E, widths, room and backend have none.
    return (
        gradients.dx_TD,
        None,
        gradients.dgate_N,
        None,
        *_select_weights(gradients, needed),
        None,
        None,
        None,
    )


def _select_weights(gradients: Gradients, needed: Mapping[str, bool]) -> list[torch.Tensor | None]:
    names = ("w_gate_FD", "w_up_FD", "w_down_FD")
    return [getattr(gradients, f"d{name}") if needed[name] else None for name in names]


forward_op.register_autograd(_backward, setup_context=_save)
