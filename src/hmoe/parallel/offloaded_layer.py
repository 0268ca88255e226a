"""A layer whose experts lie in storage: what is read, computed with, and written of one expert."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn

from hmoe.parallel.expert_storage import StoredMatrix, allocate_like_slice
from hmoe.parallel.expert_store import Weights
from hmoe.parallel.expert_update import Scratch, UpdateSpan, list_spans, update_lines
from hmoe.specs.offload import CHUNK_NUMBERS, STORED_KINDS

WEIGHTS = ("w_gate", "w_up", "w_down")
_MOMENTS = STORED_KINDS[2:]


class ExpertHome(NamedTuple):
    """What holds weights of a layer's experts in this process.

    Attributes:
        module: with the three matrices, and a `source`.
        dim: width of the model.
        widths: hidden units of each expert, or of the part of it that is here.
        experts: their numbers among all of the layer.
        share: by which gradients are multiplied, once those of all tokens are added up.
        wrap: makes a parameter's kind of tensor of a plain one.
    """

    module: nn.Module
    dim: int
    widths: list[int]
    experts: list[int]
    share: float = 1.0
    wrap: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor


class _Update(NamedTuple):
    """An optimiser step of a layer that its experts are still to take: by matrix, and how gradients are clipped."""

    steps: list[torch.Tensor]
    groups: list[Mapping[str, Any]]
    clip: Callable[[torch.Tensor], None] | None


class OffloadedLayer:
    """The experts of a layer in storage; its parameters become views of that.

    Args:
        home: of them.
        stored: its matrices, kind by kind (STORED_KINDS), three each.
        device: that computes.
    """

    def __init__(self, home: ExpertHome, stored: Sequence[StoredMatrix], device: torch.device) -> None:
        self.home, self.widths, self.dim = home, home.widths, home.dim
        self.trains = next(iter(home.module.parameters(recurse=False))).requires_grad
        self._device = device
        ends = list(accumulate(self.widths))
        self._firsts = [(end - width) * self.dim for end, width in zip(ends, self.widths, strict=True)]
        self._total = sum(self.widths) * self.dim
        self._stored = {kind: stored[3 * place : 3 * place + 3] for place, kind in enumerate(STORED_KINDS)}
        self._dtype = stored[0].whole.dtype
        self._written: set[int] = set()  # experts that have gradients since the last step
        self._zero = set(range(len(self.widths)))  # experts whose stored gradients are zeros
        self._num_passes = 0  # backward passes since the last step
        self._update: _Update | None = None
        self.has_gradients = False  # of passes before the last `attach_gradients`
        self.parameters = [self._move_out(place, name) for place, name in enumerate(WEIGHTS)]

    def _move_out(self, place: int, name: str) -> nn.Parameter:
        module, before = self.home.module, getattr(self.home.module, name)
        whole = self._stored["weights"][place].whole
        if not before.is_meta:
            whole.copy_(before.to_local() if hasattr(before, "to_local") else before.detach())
        parameter = nn.Parameter(self.home.wrap(whole), requires_grad=before.requires_grad)
        setattr(module, name, parameter)
        return parameter

    def list_moments(self, matrix: int) -> dict[str, torch.Tensor]:
        """Return the moments of a matrix as a whole."""
        return {kind: self.home.wrap(self._stored[kind][matrix].whole) for kind in _MOMENTS}

    def count_bytes(self, expert: int) -> int:
        """Return the memory that an expert's weights take."""
        return 3 * self.widths[expert] * self.dim * self._dtype.itemsize

    def read_weights(self, expert: int) -> list[torch.Tensor]:
        """Return an expert's three matrices (h, D) on the device."""
        weights = [self.allocate(expert, self._dtype) for _ in WEIGHTS]
        for stored, values in zip(self._stored["weights"], weights, strict=True):
            stored.read(self._firsts[expert], values.view(-1))
        return weights

    def allocate(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """Return memory for a matrix of an expert, which begins as its rows of a whole one would."""
        count = self.widths[expert] * self.dim
        return allocate_like_slice(count, dtype, self._device, self._firsts[expert]).view(-1, self.dim)

    # Gradients.

    def begin_backward(self) -> None:
        """Count a backward pass through the layer."""
        self._num_passes += 1

    def write_gradients(self, expert: int, gradients: Sequence[torch.Tensor], is_first: bool) -> None:
        """Add gradients to those of the passes before; `is_first`: there was none."""
        first, is_added = self._firsts[expert], expert in self._written
        for stored, values in zip(self._stored["gradients"], gradients, strict=True):
            shared = values if self.home.share == 1 else values * self.home.share
            flat = shared.to(self._dtype).view(-1)
            if is_added:
                before = torch.empty_like(flat)
                stored.read(first, before)
                flat = before.add_(flat)
            elif not is_first:
                flat = flat.add(0.0)  # as if to the zeros of the passes before: -0 becomes 0
            stored.write(first, flat)
        self._written.add(expert)
        self._zero.discard(expert)

    @property
    def num_passes(self) -> int:
        """Backward passes since the last step."""
        return self._num_passes

    def list_unwritten(self) -> list[int]:
        """Return the experts whose stored gradients are of an earlier step, though they have none."""
        return [
            expert
            for expert in range(len(self.widths))
            if self._num_passes and expert not in self._written and expert not in self._zero
        ]

    def write_zeros(self, expert: int) -> None:
        """Make an expert's stored gradients zeros."""
        count = self.widths[expert] * self.dim
        zeros = torch.zeros(min(count, CHUNK_NUMBERS), dtype=self._dtype)
        for stored in self._stored["gradients"]:
            for begin in range(0, count, CHUNK_NUMBERS):
                stored.write(self._firsts[expert] + begin, zeros[: count - begin])
        self._zero.add(expert)

    def attach_gradients(self) -> None:
        """Give the parameters their gradients, if a backward pass went through the layer."""
        self.has_gradients = self.trains and self._num_passes > 0
        for parameter, stored in zip(self.parameters, self._stored["gradients"], strict=True):
            parameter.grad = self.home.wrap(stored.whole) if self.has_gradients else None
        self._num_passes = 0
        self._written.clear()

    def count_gradient_bytes(self) -> int:
        """Return the bytes of the gradients that the parameters have."""
        return 3 * self._total * self._dtype.itemsize * self.has_gradients

    def detach_gradients(self) -> None:
        """Take the gradients from the parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    # The update.

    def begin_update(
        self,
        state: MutableMapping[Any, Any],
        groups: Mapping[nn.Parameter, Mapping[str, Any]],
        clip: Callable[[torch.Tensor], None] | None,
    ) -> None:
        """Note an optimiser step that the experts are still to take, and count it in the optimiser's state."""
        steps = []
        for matrix, parameter in enumerate(self.parameters):
            own = state[parameter]
            if not own:
                own |= {"step": torch.zeros(()), **self.list_moments(matrix)}
            steps.append(own["step"].clone())
            own["step"] += 1
        self._update = _Update(steps, [groups[parameter] for parameter in self.parameters], clip)

    def update(self, expert: int, weights: Weights | None, scratch: Scratch) -> None:
        """Update an expert in storage, and its weights on the device, if they are there."""
        assert self._update is not None
        first, count = self._firsts[expert], self.widths[expert] * self.dim
        for matrix in range(3):
            kept = None if weights is None else weights[matrix].view(-1)
            for span in list_spans(first, count, self._total, self._dtype.itemsize):
                part = None if kept is None else kept[span.first - first : span.first - first + span.length]
                self._update_span(scratch, matrix, span, part, expert in self._zero)

    def _update_span(
        self, scratch: Scratch, matrix: int, span: UpdateSpan, kept: torch.Tensor | None, is_zero: bool
    ) -> None:
        assert self._update is not None
        lines, (weights, gradients, *moments) = scratch.open_span(span)
        if kept is None:
            self._stored["weights"][matrix].read(span.first, weights)
        else:
            weights.copy_(kept)
        if is_zero:
            gradients.zero_()
        else:
            self._stored["gradients"][matrix].read(span.first, gradients)
        for kind, values in zip(_MOMENTS, moments, strict=True):
            self._stored[kind][matrix].read(span.first, values)
        step, group = self._update.steps[matrix], self._update.groups[matrix]
        update_lines(lines, step, group, self._update.clip)
        if kept is not None:
            kept.copy_(weights)
        for kind, values in zip(("weights", *_MOMENTS), (weights, *moments), strict=True):
            self._stored[kind][matrix].write(span.first, values)
