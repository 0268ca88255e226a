"""Rotary position embeddings (Su et al. 2021), plain or stretched; pairs (i, i + C/2) as Hugging Face's."""

import math
from typing import Any

import torch

from hmoe.kernels import can_fuse, rotate_pairs
from hmoe.model.precision import find_autocast_dtype
from hmoe.specs.rope import RopeScaling

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each (B or 1, 1, L, C/2)


def compute_rotary(
    positions_BL: torch.Tensor, head_width: int, theta: float, scaling: RopeScaling | None, like: torch.Tensor
) -> Rotary:
    """Return cosines and sines of positions in the type of attention; angles are float32 or better."""
    # bfloat16 has 8 significant bits: positions above 256 would share their angles.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if scaling is not None and scaling.kind == "dynamic":
        assert scaling.original_length is not None
        # Only beyond the trained length are frequencies stretched; within it they are the plain ones.
        length = max(scaling.original_length, int(positions_BL.max()) + 1)
        stretch = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
        theta = theta * stretch ** (head_width / (head_width - 2))
    frequency = theta ** (-torch.arange(0, head_width, 2, dtype=dtype, device=like.device) / head_width)
    magnitude = 1.0
    if scaling is not None and scaling.kind != "dynamic":
        frequency, magnitude = _stretched(frequency, head_width, theta, scaling)
    angles = positions_BL[:, None, :, None].to(dtype) * frequency
    final = find_autocast_dtype(like.device) or like.dtype
    return (angles.cos() * magnitude).to(final), (angles.sin() * magnitude).to(final)


def _stretched(
    frequency: torch.Tensor, head_width: int, theta: float, scaling: RopeScaling
) -> tuple[torch.Tensor, float]:
    """Return frequencies under linear, llama3 or yarn scaling, and what cosine and sine are multiplied by."""
    # linear stretches all turns; the others keep fast ones and blend those between,
    # and differ in where between is.
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow, 1.0
    assert scaling.original_length is not None
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
        turns = scaling.original_length * frequency / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return slow * (1 - keep) + frequency * keep, 1.0
    ends = []
    for turns_at_end in (scaling.beta_fast or 32.0, scaling.beta_slow or 1.0):
        ends.append(
            head_width
            * math.log(scaling.original_length / (turns_at_end * 2 * math.pi))
            / (2 * math.log(theta))
        )
    if scaling.truncate is not False:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0.0), min(ends[1], head_width - 1.0)
    if first == last:
        last += 0.001  # as in transformers: no division by 0
    pair = torch.arange(head_width // 2, dtype=frequency.dtype, device=frequency.device)
    keep = 1 - ((pair - first) / (last - first)).clamp(0, 1)
    magnitude = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    return slow * (1 - keep) + frequency * keep, magnitude


class _Rotate(torch.autograd.Function):
    """Rotates pairs (i, i + C/2), and back in the backward pass: four passes over memory, one on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BHLC, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        cos, sin = ctx.saved_tensors
        # By itself, so that gradients can be differentiated again.
        return _Rotate.apply(grad_outputs[0], cos, -sin), None, None  # type: ignore[no-untyped-call]


def _rotate(x_BHLC: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    if can_fuse(x_BHLC):
        return rotate_pairs(x_BHLC, cos, sin)
    out_BHLC = torch.empty_like(x_BHLC)
    first, second = x_BHLC.chunk(2, dim=-1)
    out_first, out_second = out_BHLC.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out_BHLC


def rotate_heads(x_BHLC: torch.Tensor, table: Rotary) -> torch.Tensor:
    """Return queries or keys rotated by the angles of their positions."""
    cos, sin = (part.to(x_BHLC.dtype) for part in table)
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or can_fuse(x_BHLC)):
        # A compiler fuses passes itself and cannot write into parts of a tensor; one token
        # is a matter of few operations.
        first, second = x_BHLC.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    rotated: torch.Tensor = _Rotate.apply(x_BHLC, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


def interleave_pairs(w: torch.Tensor, head_width: int) -> torch.Tensor:
    """Return the rows of a projection's weights so that those of a pair (i, i + C/2) follow each other."""
    return w.view(-1, 2, head_width // 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def turn_pairs(x: torch.Tensor, table: Rotary) -> torch.Tensor:
    """Return heads (B, L, heads x C), whose pairs lie side by side, rotated by the angles of their positions.

    Two numbers side by side are a complex one: rotating is one multiplication, along whole rows of memory.
    """
    cos, sin = (part.to(x.dtype).transpose(1, 2) for part in table)
    heads = x.shape[-1] // (2 * cos.shape[-1])
    turn = torch.complex(cos, sin).expand(-1, -1, heads, -1).flatten(2)
    return torch.view_as_real(torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)) * turn).flatten(2)
