"""The `triton` backend: launches the ragged kernels in order. No size of the routing reaches the host."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from hmoe.errors import ConfigError
from hmoe.kernels.capture import check_first_call
from hmoe.kernels.device import runs_triton, use_device_of
from hmoe.kernels.layer import Backend, Gradients, Layer, Saved, bound_room
from hmoe.kernels.ragged.backward import down_backward_kernel, weight_kernel
from hmoe.kernels.ragged.forward import combine_kernel, down_kernel, place_kernel, up_kernel
from hmoe.kernels.ragged.shapes import LAUNCHES, VARIABLE, TileShape, choose_shape, name_size
from hmoe.kernels.ragged.tiles import INTERPRETED, ROWS_OF_PLAN, plan_kernel

MULTIPLE = 16  # of model width and expert widths: 16-byte copies of any type
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_EXPERTS = 1024  # one program holds a vector over experts


def explain_triton_refusal(layer: Layer) -> str | None:
    """Return why the Triton kernels cannot compute this layer, or None."""
    x_TD = layer.x_TD
    odd = [size for size in (x_TD.shape[1], *layer.widths) if size % MULTIPLE]
    largest = max(layer.widths, default=0) * x_TD.shape[1]
    reasons = {
        f"it needs a GPU of compute capability 8.0 or newer, the tensors are on {x_TD.device.type}": not _device_fits(
            x_TD
        ),
        f"{x_TD.dtype} is not one of bfloat16, float16, float32": x_TD.dtype not in DTYPES,
        f"the model width and all widths must be multiples of {MULTIPLE}, {odd[0] if odd else 0} is not": bool(
            odd
        ),
        f"{len(layer.widths)} experts are more than {MOST_EXPERTS}": len(layer.widths) > MOST_EXPERTS,
        f"{x_TD.numel()} elements of x are too many for 32-bit offsets": x_TD.numel() >= 2**31,
        f"{largest} weights of one projection of an expert are too many for 32-bit offsets": largest >= 2**31,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _device_fits(x_TD: torch.Tensor) -> bool:
    return INTERPRETED or runs_triton(x_TD.device)


@functools.lru_cache(maxsize=1024)  # a CUDA graph reads them for as long as it lives
def _on_device(widths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return widths as a tensor; kept, since copying them to the device every time would wait for it."""
    return torch.tensor(widths, device=device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


KERNELS: dict[str, tuple[Any, dict[str, bool]]] = {  # launch -> kernel, flags that choose its variant
    "up": (up_kernel, {}),
    "down": (down_kernel, {"TWO": False}),
    "dx": (down_kernel, {"TWO": True}),
    "down_backward": (down_backward_kernel, {}),
    "weights_gate_up": (weight_kernel, {"TWO": True}),
    "weights_down": (weight_kernel, {"TWO": False}),
}
_PLACED = 256  # pairs that a program places


class Launcher:
    """Launches the kernels of one layer, and holds what they share.

    Attributes:
        plan: offsets and order of the experts, on the device.
        sizes: pairs per expert and width of an expert, on average, and model width: what the tile shapes
            depend on.
    """

    def __init__(self, layer: Layer, *variant: str | bool) -> None:
        """Plan a layer; passes that load other kernels differ in `variant`, and each has a first call."""
        self.x_TD, self.num_pairs, self.layer = layer.x_TD, len(layer.token_N), layer
        self.num_experts = len(layer.widths)
        # At least 2: a row of the plan holds two counters of tiles.
        self.padded = max(triton.next_power_of_2(self.num_experts), 2)
        self.plan = torch.empty(ROWS_OF_PLAN, self.padded, dtype=torch.int64, device=self.x_TD.device)
        self.sizes = (
            self.num_pairs // self.num_experts,
            sum(layer.widths) // self.num_experts,
            self.x_TD.shape[1],
        )
        tiles = tuple(name_size(launch, *self.sizes) for launch in LAUNCHES)
        check_first_call(
            "expert_ffn", (variant, layer.widths, self.sizes[2], tiles, layer.x_TD.dtype), layer.x_TD.device
        )
        self.begin()

    def begin(self) -> None:
        """Write the plan of the layer, in which no tile is taken yet."""
        width_E = _on_device(tuple(self.layer.widths), self.x_TD.device)
        sizes = (self.num_pairs, len(self.x_TD))
        plan_kernel[(1,)](self.layer.num_tokens_E, width_E, self.plan, *sizes, self.num_experts, self.padded)

    def shape(self, launch: str) -> TileShape:
        """Return the tile shape of a launch."""
        return choose_shape(launch, self.sizes, self.x_TD.dtype, self.x_TD.device)

    def __call__(self, launch: str, *tensors: torch.Tensor | int, **flags: bool) -> None:
        """Launch a kernel with as many programs as fit on the device at a time, which share its tiles.

        Raises:
            ConfigError: if the tile shape needs more shared memory or registers than the GPU has.
        """
        (kernel, variant), shape = KERNELS[launch], self.shape(launch)
        upcast = INTERPRETED and self.x_TD.dtype == torch.bfloat16
        constants = {
            "D": self.sizes[2],
            "PADDED": self.padded,
            "UPCAST": upcast,
            **variant,
            **flags,
            **shape.options,
        }
        try:
            kernel[(_multiprocessors(self.x_TD.device) * shape.programs,)](*tensors, **constants)
        except OutOfResources as error:
            raise ConfigError(
                f"expert_ffn: tile shape {list(shape)} of {launch} does not fit this GPU ({error}); "
                f"take it out of the file that {VARIABLE} names, or let the table choose"
            ) from None

    def combine(self, rows_ND: torch.Tensor, gate_N: torch.Tensor | None) -> torch.Tensor:
        """Return each token's sum of its rows (T, D), times their gates unless None."""
        y_TD, num_experts, dim = torch.empty_like(self.x_TD), self.num_experts, self.sizes[2]
        if not len(y_TD):
            return y_TD
        # A table of places in place of a sort: no number of pairs per token has to be known.
        place_TE = torch.full((len(y_TD), num_experts), -1, dtype=torch.int32, device=y_TD.device)
        # A token comes to an expert at most once.
        blocks = triton.cdiv(min(self.num_pairs, len(y_TD)), _PLACED)
        if blocks:
            place_kernel[(blocks, num_experts)](
                self.layer.token_N, self.plan, place_TE, num_experts, self.padded, _PLACED
            )
        # Without gates any tensor may stand for them, since the kernel does not read it.
        gates, block = rows_ND if gate_N is None else gate_N, triton.next_power_of_2(dim)
        sizes = (dim, block, num_experts, self.padded)
        combine_kernel[(len(y_TD),)](rows_ND, gates, place_TE, y_TD, *sizes, GATED=gate_N is not None)
        return y_TD


def _on_the_tensors_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of a layer launch on the layer's device, whichever is the current one."""

    @functools.wraps(function)
    def run(layer: Layer, *arguments: Any) -> Any:
        with use_device_of(layer.x_TD):
            return function(layer, *arguments)

    return run


@_on_the_tensors_device
def forward_triton(layer: Layer, room: int) -> tuple[torch.Tensor, Saved]:
    """Compute a layer's output by the ragged kernels; arguments as in `layer.Backend`."""
    x_TD = layer.x_TD
    saved = Saved(x_TD.new_empty(room), x_TD.new_empty(room), torch.empty_like(layer.token_N))
    run = Launcher(layer, "forward", room > 0)
    # The activation needs room also where nothing is kept; how much exactly is known on the device only.
    act, out_ND = x_TD.new_empty(room or bound_room(layer)), x_TD.new_empty(run.num_pairs, x_TD.shape[1])
    weights = (layer.w_gate_FD, layer.w_up_FD)
    run("up", x_TD, layer.token_N, run.plan, *weights, saved.pre_gate, saved.pre_up, act, KEEP=room > 0)
    run("down", act, layer.w_down_FD, act, layer.w_down_FD, run.plan, out_ND)
    return run.combine(out_ND, layer.gate_N), saved


@_on_the_tensors_device
def backward_triton(layer: Layer, saved: Saved, dy_TD: torch.Tensor, weights: bool) -> Gradients:
    """Compute a layer's gradients by the ragged kernels; arguments as in `layer.Backend`."""
    x_TD, token_N, gate_N = layer.x_TD, layer.token_N, layer.gate_N
    run = Launcher(layer, "backward", weights)
    dgate, dup, act = (torch.empty_like(saved.pre_gate) for _ in range(3))
    # Zeros: a narrow expert has fewer tiles of units than the widest, and leaves the rest of its rows
    # unwritten.
    tiles = triton.cdiv(max(layer.widths), run.shape("down_backward").columns)
    partial = gate_N.new_zeros(tiles, run.num_pairs, dtype=torch.float32)
    into = (dgate, dup, act, partial, run.num_pairs)
    run(
        "down_backward",
        dy_TD,
        token_N,
        gate_N,
        run.plan,
        layer.w_down_FD,
        saved.pre_gate,
        saved.pre_up,
        *into,
    )
    dx_ND = x_TD.new_empty(run.num_pairs, x_TD.shape[1])
    run("dx", dgate, layer.w_gate_FD, dup, layer.w_up_FD, run.plan, dx_ND)
    dx_TD = run.combine(dx_ND, None)
    size = layer.w_gate_FD.shape if weights else (0,)
    dw_gate, dw_up, dw_down = (layer.w_gate_FD.new_empty(size) for _ in range(3))
    if weights:
        # d gate and d up have x in common, so one launch reads its rows once for both.
        run("weights_gate_up", dgate, dup, x_TD, token_N, run.plan, dw_gate, dw_up)
        run("weights_down", act, act, dy_TD, token_N, run.plan, dw_down, dw_down)
    return Gradients(dx_TD, partial.sum(0).to(gate_N.dtype), dw_gate, dw_up, dw_down)


BACKEND = Backend(forward_triton, backward_triton, explain_triton_refusal, lambda x_TD, num_pairs: num_pairs)
