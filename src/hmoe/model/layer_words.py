"""What print(model) shows of a layer with experts."""

from typing import Any

_MOST_WIDTHS_SHOWN = 16


def describe_layer(moe: Any) -> str:
    """Describe a layer of `hmoe.MoE`: its width, its experts, its router, what is beside them, and its size."""
    widths = moe.widths
    if len(widths) > _MOST_WIDTHS_SHOWN:
        shown = f"widths={len(widths)} from {min(widths)} to {max(widths)}"
    else:
        shown = f"widths={widths}"
    parts = [name for name in ("shared", "zero", "hyper") if getattr(moe, name) is not None]
    num_parameters = sum(parameter.numel() for parameter in moe.parameters())
    fields = [f"dim={moe.dim}", shown, f"router={moe.router.spec.title}"]
    fields += [f"with {' and '.join(parts)}"] * bool(parts)
    fields += [f"backend={moe.backend!r}"] * (moe.backend is not None)
    weight = moe.router.weight if moe.experts is not None else moe.w_gate
    dtype, device = str(weight.dtype).removeprefix("torch."), weight.device
    return ", ".join([*fields, f"{num_parameters:,} parameters in {dtype} on {device}"])
