"""Which backend computes a layer: by name, or the fastest known for device, dtype and size."""

import functools
import importlib

import torch

from hmoe.errors import ConfigError
from hmoe.kernels.device import has_triton
from hmoe.kernels.layer import Backend, Layer

HOMES = {
    "loop": "hmoe.kernels.loop",
    "exact": "hmoe.kernels.exact",
    "cpu": "hmoe.kernels.cpu",
    "triton": "hmoe.kernels.ragged.launch",
}
NAMES = ("reference", *HOMES)


@functools.cache
def get_backend(name: str) -> Backend:
    """Return the backend of that name, imported at the first call: Triton may be missing, and takes time."""
    module_backend: Backend = importlib.import_module(HOMES[name]).BACKEND
    return module_backend


def check_layer_tensors(layer: Layer) -> None:
    """Raise ConfigError for tensors that do not fit together: the fast backends trust pointers."""
    x_TD, num_units = layer.x_TD, sum(layer.widths)
    for name, tensor in zip(layer._fields, layer[:7], strict=False):
        axes = 2 if name in ("x_TD", "w_gate_FD", "w_up_FD", "w_down_FD") else 1
        if tensor.dim() != axes:
            raise ConfigError(f"expert_ffn: {name} has shape {tuple(tensor.shape)}, must have {axes} axes")
        if tensor.device != x_TD.device:
            raise ConfigError(f"expert_ffn: {name} is on {tensor.device}, must be on {x_TD.device} as x is")
    for name in ("w_gate_FD", "w_up_FD", "w_down_FD"):
        weight = getattr(layer, name)
        if weight.dtype != x_TD.dtype:
            raise ConfigError(
                f"expert_ffn: {name} is {weight.dtype}, must be {x_TD.dtype} as x is; convert one, or use autocast"
            )
        if weight.shape[0] != num_units or weight.shape[1] != x_TD.shape[1]:
            expected = (num_units, x_TD.shape[1])
            raise ConfigError(
                f"expert_ffn: {name} is {tuple(weight.shape)}, must be {expected}: the widths' sum, x's width"
            )
    for name in ("token_N", "num_tokens_E"):
        if getattr(layer, name).dtype != torch.int64:
            raise ConfigError(f"expert_ffn: {name} is {getattr(layer, name).dtype}, must be torch.int64")
    if len(layer.num_tokens_E) != len(layer.widths):
        raise ConfigError(
            f"expert_ffn: {len(layer.num_tokens_E)} counts in num_tokens_E for {len(layer.widths)} widths"
        )
    if layer.gate_N.shape != layer.token_N.shape:
        raise ConfigError(f"expert_ffn: {len(layer.gate_N)} gates for {len(layer.token_N)} pairs")


def check_counts(layer: Layer, name: str) -> None:
    """Raise ConfigError for counts that cannot be: negative, more than tokens, or more than pairs in sum.

    The Triton backend never waits for the counts; there the first kernel asserts the same on the device.
    """
    if name == "triton" and layer.num_tokens_E.device.type != "cpu":
        return
    counts, num_tokens, num_pairs = layer.num_tokens_E.tolist(), len(layer.x_TD), len(layer.token_N)
    for expert, count in enumerate(counts):
        if not 0 <= count <= num_tokens:
            raise ConfigError(
                f"expert_ffn: num_tokens_E[{expert}] = {count}, must be from 0 to the number of tokens, "
                f"{num_tokens}: at most one pair of a token and an expert"
            )
    if sum(counts) > num_pairs:
        raise ConfigError(
            f"expert_ffn: num_tokens_E sums to {sum(counts)}, must be at most the pairs in token_N, {num_pairs}"
        )


def explain_refusal(name: str, layer: Layer) -> str | None:
    """Return why the backend of that name cannot compute this layer, or None."""
    if name == "triton" and not has_triton():  # importing the backend would fail
        return "triton is not installed: pip install triton"
    return get_backend(name).refusal(layer)


def choose_backend(layer: Layer) -> str:
    """Return the name of the backend for these tensors; float64 goes to the definition."""
    device, dtype = layer.x_TD.device.type, layer.x_TD.dtype
    if dtype == torch.float64:
        return "reference"
    if device == "cpu":
        return "cpu"
    # Measured on one GPU (docs/log.md): the kernels are ahead of the loop for few large experts too, since
    # the loop waits for the counts. Float32 stays with the loop: there the kernels use no tensor cores, and
    # are for checks.
    low = dtype in (torch.bfloat16, torch.float16)
    return "triton" if device == "cuda" and low and explain_refusal("triton", layer) is None else "loop"


def describe_tiles() -> str:
    """Describe which tile shapes the kernels of this machine's GPU use; "" where Triton's are not used."""
    if not torch.cuda.is_available() or not has_triton():
        return ""
    from hmoe.kernels.ragged import shapes  # noqa: PLC0415 - needs Triton

    return shapes.describe_table(torch.device("cuda", torch.cuda.current_device()))


def resolve_backend(name: str | None, layer: Layer) -> str:
    """Return the name of the backend that computes the layer: the one asked for, else the one chosen.

    Raises:
        ConfigError: for an unknown name, or one that cannot compute these tensors.
    """
    if not name:
        return choose_backend(layer)
    if name not in NAMES:
        raise ConfigError(f"backend = {name!r}, must be one of {', '.join(NAMES)}")
    reason = None if name == "reference" else explain_refusal(name, layer)
    if reason:
        raise ConfigError(f"backend = {name!r} cannot compute this layer: {reason}; nearest choice: loop")
    return name
