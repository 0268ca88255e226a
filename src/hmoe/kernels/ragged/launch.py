"""The `triton` backend: allocates, and launches the ragged kernels in order. No size of the routing reaches the host."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import triton

from hmoe.kernels.layer import Backend, Gradients, Layer, Saved, room_bound
from hmoe.kernels.ragged.backward import down_backward_kernel, weight_kernel
from hmoe.kernels.ragged.forward import combine_kernel, down_kernel, up_kernel
from hmoe.kernels.ragged.tiles import INTERPRETED, ROWS_OF_PLAN, plan_kernel
from hmoe.kernels.ragged.tune import LEAST_BN

MULTIPLE = 16  # of model width and expert widths: 16-byte copies of any type
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_EXPERTS = 1024  # one program holds a vector over experts


def refusal(layer: Layer) -> str | None:
    """See `layer.Backend`."""
    x_TD = layer.x_TD
    odd = [size for size in (x_TD.shape[1], *layer.widths) if size % MULTIPLE]
    reasons = {
        f"it needs a GPU of compute capability 8.0 or newer, the tensors are on {x_TD.device.type}": not _device_fits(
            x_TD
        ),
        f"{x_TD.dtype} is not one of bfloat16, float16, float32": x_TD.dtype not in DTYPES,
        f"the model width and all widths must be multiples of {MULTIPLE}, {odd[0] if odd else 0} is not": bool(odd),
        f"{len(layer.widths)} experts are more than {MOST_EXPERTS}": len(layer.widths) > MOST_EXPERTS,
        f"{x_TD.numel()} elements of x are too many for 32-bit offsets": x_TD.numel() >= 2**31,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _device_fits(x_TD: torch.Tensor) -> bool:
    return INTERPRETED or (x_TD.is_cuda and torch.cuda.get_device_capability(x_TD.device) >= (8, 0))


@functools.lru_cache(maxsize=64)
def _on_device(widths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Widths as a tensor; kept, because copying to the device every time would wait for it."""
    return torch.tensor(widths, device=device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


class Launcher:
    """What every launch of one layer has in common."""

    def __init__(self, layer: Layer) -> None:
        self.x_TD, self.num_pairs = layer.x_TD, len(layer.token_N)
        experts = len(layer.widths)
        self.padded = max(triton.next_power_of_2(experts), 2)
        self.plan = torch.empty(ROWS_OF_PLAN, self.padded, dtype=torch.int64, device=self.x_TD.device)
        width_E = _on_device(tuple(layer.widths), self.x_TD.device)
        sizes = (self.num_pairs, len(self.x_TD))
        plan_kernel[(1,)](layer.num_tokens_E, width_E, self.plan, *sizes, experts, self.padded)
        self.tune = {
            "tune_rows": triton.next_power_of_2(max(self.num_pairs // experts, 1)),
            "tune_width": triton.next_power_of_2(sum(layer.widths) // experts),
        }

    def __call__(self, kernel: Any, *tensors: torch.Tensor | int, **flags: bool) -> None:
        """Persistent programs: as many as fit at a time."""
        grid: Callable[[dict[str, Any]], tuple[int]] = lambda meta: (  # noqa: E731
            _multiprocessors(self.x_TD.device) * meta["WAVES"],
        )
        upcast = INTERPRETED and self.x_TD.dtype == torch.bfloat16
        dim = self.x_TD.shape[1]
        kernel[grid](*tensors, **self.tune, D=dim, PADDED=self.padded, UPCAST=upcast, **flags)

    def combine(
        self, rows_ND: torch.Tensor, gate_N: torch.Tensor | None, order_N: torch.Tensor, start_T: torch.Tensor
    ) -> torch.Tensor:
        """Each token's sum of its rows, times their gates unless None."""
        y_TD = torch.empty_like(self.x_TD)
        if len(y_TD):
            dim, gates = y_TD.shape[1], order_N if gate_N is None else gate_N
            block = triton.next_power_of_2(dim)
            combine_kernel[(len(y_TD),)](rows_ND, gates, order_N, start_T, y_TD, dim, block, GATED=gate_N is not None)
        return y_TD


def _owners(layer: Layer) -> torch.Tensor:
    """Token of each pair; pairs beyond the counts belong to a token behind the last."""
    real_N = torch.arange(len(layer.token_N), device=layer.token_N.device) < layer.num_tokens_E.sum()
    return torch.where(real_N, layer.token_N, len(layer.x_TD))


def _starts(layer: Layer, sorted_N: torch.Tensor) -> torch.Tensor:
    """Where each token's pairs start among the pairs grouped by token, and where the last token's end."""
    return torch.searchsorted(sorted_N, torch.arange(len(layer.x_TD) + 1, device=sorted_N.device))


def _on_the_tensors_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be that of the tensors."""

    @functools.wraps(function)
    def run(layer: Layer, *arguments: Any) -> Any:
        with torch.cuda.device(layer.x_TD.device) if layer.x_TD.is_cuda else contextlib.nullcontext():
            return function(layer, *arguments)

    return run


@_on_the_tensors_device
def forward(layer: Layer, room: int) -> tuple[torch.Tensor, Saved]:
    """See `layer.Backend`."""
    x_TD = layer.x_TD
    sorted_N, order_N = torch.sort(_owners(layer), stable=True)
    saved = Saved(x_TD.new_empty(room), x_TD.new_empty(room), order_N)
    run = Launcher(layer)
    act, out_ND = x_TD.new_empty(room or room_bound(layer)), x_TD.new_empty(run.num_pairs, x_TD.shape[1])
    weights = (layer.w_gate_FD, layer.w_up_FD)
    run(up_kernel, x_TD, layer.token_N, run.plan, *weights, saved.pre_gate, saved.pre_up, act, KEEP=room > 0)
    run(down_kernel, act, layer.w_down_FD, act, layer.w_down_FD, run.plan, out_ND, TWO=False)
    return run.combine(out_ND, layer.gate_N, order_N, _starts(layer, sorted_N)), saved


@_on_the_tensors_device
def backward(layer: Layer, saved: Saved, dy_TD: torch.Tensor, weights: bool) -> Gradients:
    """See `layer.Backend`."""
    x_TD, token_N, gate_N = layer.x_TD, layer.token_N, layer.gate_N
    run = Launcher(layer)
    dgate, dup, act = (torch.empty_like(saved.pre_gate) for _ in range(3))
    partial = gate_N.new_zeros(-(-max(layer.widths) // LEAST_BN), run.num_pairs, dtype=torch.float32)
    into = (dgate, dup, act, partial, run.num_pairs)
    run(down_backward_kernel, dy_TD, token_N, gate_N, run.plan, layer.w_down_FD, saved.pre_gate, saved.pre_up, *into)
    dx_ND = x_TD.new_empty(run.num_pairs, x_TD.shape[1])
    run(down_kernel, dgate, layer.w_gate_FD, dup, layer.w_up_FD, run.plan, dx_ND, TWO=True)
    dx_TD = run.combine(dx_ND, None, saved.order_N, _starts(layer, _owners(layer)[saved.order_N]))
    size = layer.w_gate_FD.shape if weights else (0,)
    dw_gate, dw_up, dw_down = (layer.w_gate_FD.new_empty(size) for _ in range(3))
    if weights:
        run(weight_kernel, dgate, dup, x_TD, token_N, run.plan, dw_gate, dw_up, TWO=True)
        run(weight_kernel, act, act, dy_TD, token_N, run.plan, dw_down, dw_down, TWO=False)
    return Gradients(dx_TD, partial.sum(0).to(gate_N.dtype), dw_gate, dw_up, dw_down)


BACKEND = Backend(forward, backward, refusal, lambda x_TD, num_pairs: num_pairs)
