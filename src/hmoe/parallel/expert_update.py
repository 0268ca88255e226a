"""AdamW on a part of a tensor, with the bits that it has on the whole."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.optim.adamw import adamw

from hmoe.specs.offload import CHUNK_NUMBERS

# PyTorch's fused kernel on a CPU goes through a tensor by lines of so many bytes, a vector at a time; in the last line,
# where it is no whole one, it may compute number by number, and round otherwise.
_LINE_BYTES = 64


class UpdateSpan(NamedTuple):
    """Numbers of a tensor that are updated at once.

    Attributes:
        first, length: those.
        before: numbers of the same line before them, which memory must be there for.
        room: numbers of all lines in which they are.
    """

    first: int
    length: int
    before: int
    room: int


def list_spans(first: int, count: int, total: int, itemsize: int) -> Iterator[UpdateSpan]:
    """Yield the spans into which some numbers of a tensor are cut, so that each is computed as in the whole tensor.

    Args:
        first, count: which numbers.
        total: numbers of the whole tensor.
        itemsize: bytes of a number.
    """
    line = _LINE_BYTES // itemsize
    last_line, end = total - total % line, first + count
    while first < min(end, last_line):
        size = min(CHUNK_NUMBERS, min(end, last_line) - first)
        yield UpdateSpan(first, size, 0, -(-size // line) * line)
        first += size
    if first < end:
        yield UpdateSpan(first, end - first, first - last_line, total - last_line)


class Scratch:
    """Memory in which a span's weights, gradients and moments are updated.

    Args:
        most: numbers that are updated by one call of `list_spans`.
        dtype, device: of the tensors.
    """

    def __init__(self, most: int, dtype: torch.dtype, device: torch.device) -> None:
        room = min(most, CHUNK_NUMBERS) + _LINE_BYTES // dtype.itemsize
        self._tensors = [torch.zeros(room, dtype=dtype, device=device) for _ in range(4)]

    def open_span(self, span: UpdateSpan) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the four tensors as long as a span's lines, and of each the span's own numbers."""
        lines = [tensor[: span.room] for tensor in self._tensors]
        if span.length < span.room:
            for tensor in lines:
                tensor.zero_()
        return lines, [tensor[span.before : span.before + span.length] for tensor in lines]


def update_lines(
    lines: list[torch.Tensor],
    step: torch.Tensor,
    group: Mapping[str, Any],
    clip: Callable[[torch.Tensor], None] | None,
) -> None:
    """Update weights by gradients and both moments, as `torch.optim.AdamW` does with `fused`.

    Args:
        lines: weights, gradients, first and second moments.
        step: updates before this one.
        group: of the optimiser, with its learning rate, betas, eps and weight decay.
        clip: scales gradients before.
    """
    weights, gradients, first, second = lines
    steps = [step.to(weights.device, copy=True)]  # on a GPU the kernel reads it there
    if clip is not None:
        clip(gradients)
    adamw(
        [weights], [gradients], [first], [second], [], steps,
        fused=True, amsgrad=group["amsgrad"], beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
        weight_decay=group["weight_decay"], eps=group["eps"], maximize=group["maximize"],
    )  # fmt: skip
