"""Expert offload: weights, gradients and moments of experts lie in a file or in the host's memory (ES-MoE).

    forward, backward    weights of one expert after another, fetched ahead; gradients go back as they are made
    update               each expert by itself, in the order in which the next forward pass needs them, while it runs

Only the experts that fit are in the device's memory. Losses and weights have the bits that they have without, by
backend `loop` and AdamW with `fused`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.parallel.expert_cache import ExpertCache
from hmoe.parallel.expert_homes import list_expert_homes
from hmoe.parallel.expert_storage import ExpertStorage, FileStorage, HostStorage
from hmoe.parallel.expert_store import Key, Weights
from hmoe.parallel.expert_update import Scratch
from hmoe.parallel.layer_source import LayerSource
from hmoe.parallel.next_experts import NextExperts
from hmoe.parallel.offload_checks import check_homes, check_optimizer
from hmoe.parallel.offloaded_layer import OffloadedLayer
from hmoe.specs.offload import MOST_WAITING_GRADIENTS, STORED_KINDS

Clip = Callable[[torch.Tensor], None]


class ExpertOffload:
    """The experts of a model that lie outside of its device's memory.

    A training loop calls forward and backward passes as always; then measures the norm of all gradients within
    `attach_gradients`; clips those that it sees after that, and calls `step` after the optimiser's own. The parameters
    show the newest weights within `look_at_all` only.

    Args:
        model: with `hmoe.MoE` layers, whose weights may be on the meta device; of several processes that placed their
            experts (`hmoe.parallelize`) each offloads its own.
        folder: for the file with the experts; None: they are kept in the host's memory.
        device: that computes.
        most_bytes: of the device's memory for weights of experts; at least of the two widest.
        reads_only: the model is not trained: no room is made for gradients and moments, what was used least recently
            makes room, and experts are fetched ahead that the next layer's router would choose (`NextExperts`).

    Raises:
        ConfigError: if `most_bytes` is too little, or nothing can be offloaded.
        CheckpointError: if the disk is full.

    Attributes:
        storage: where the experts lie.
        cache: of those in the device's memory.
    """

    storage: ExpertStorage

    def __init__(
        self,
        model: nn.Module,
        folder: Path | None,
        device: torch.device,
        most_bytes: int,
        reads_only: bool = False,
    ) -> None:
        homes = list_expert_homes(model)
        dtype = check_homes(homes, most_bytes, reads_only)
        self.device = device
        size = 3 * (1 if reads_only else len(STORED_KINDS))
        shapes = [(sum(home.widths), home.dim) for home in homes for _ in range(size)]
        if folder is None:
            self.storage = HostStorage(shapes, dtype, pinned=device.type == "cuda")
        else:
            self.storage = FileStorage(folder, shapes, dtype)
        stored = self.storage.matrices
        cuda: Any = torch.cuda
        self._stream = cuda.Stream(device) if device.type == "cuda" else None
        self._layers = [
            OffloadedLayer(home, stored[place * size : (place + 1) * size], device)
            for place, home in enumerate(homes)
        ]
        most = max(max(home.widths, default=0) * home.dim for home in homes)
        self._scratch = Scratch(0 if reads_only else most, dtype, device)
        self.cache = ExpertCache(self, most_bytes)
        self._most_bytes = most_bytes
        self._current: Key | None = None  # the expert that is computed
        self._busy: list[Sequence[int]] = [range(len(layer.widths)) for layer in self._layers]
        self.next_experts = NextExperts(model, self.cache) if reads_only else None
        self._to_return: list[int] = []  # layers whose backward pass is still to come
        for place, layer in enumerate(self._layers):
            layer.home.module.source = LayerSource(self, place, layer)  # type: ignore[assignment]

    @property
    def moments(self) -> dict[nn.Parameter, dict[str, torch.Tensor]]:
        """Memory for the moments of each parameter that is offloaded, by their names in AdamW's state."""
        return {
            parameter: layer.list_moments(matrix)
            for layer in self._layers
            for matrix, parameter in enumerate(layer.parameters)
        }

    # What a training loop calls.

    @contextlib.contextmanager
    def attach_gradients(self) -> Iterator[None]:
        """Give a context in which each parameter has its gradients of all backward passes since the last step.

        After it clipping and the optimiser pass over these parameters.
        """
        self.settle()
        for layer in self._layers:
            for expert in layer.list_unwritten():
                self.submit(partial(layer.write_zeros, expert))
        self.settle()
        for layer in self._layers:
            layer.attach_gradients()
            # Whoever measures their norm reads them all.
            self.storage.moved.read_bytes += layer.count_gradient_bytes() * (self.storage.folder is not None)
        self._to_return.clear()
        with self.storage.look_at_all():
            yield
        for layer in self._layers:
            layer.detach_gradients()

    def step(self, optimizer: torch.optim.Optimizer, clip: Clip | None = None) -> None:
        """Let each expert be updated by its gradients before it is used again; `clip` scales a part of them.

        Raises:
            ConfigError: unless the optimiser is `torch.optim.AdamW` with `fused=True`, made after this object.
        """
        check_optimizer(optimizer)
        groups = {
            parameter: {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        changed = [layer for layer in self._layers if layer.has_gradients]
        if any(parameter not in groups for layer in changed for parameter in layer.parameters):
            raise ConfigError(
                "offload: the optimizer has not the parameters of all experts; make it after ExpertOffload",
                argument="optimizer",
            )
        for layer in changed:
            layer.begin_update(optimizer.state, groups, clip)
        self.cache.mark_stale(
            (place, expert) for place, layer in enumerate(self._layers) if layer.has_gradients
            for expert in range(len(layer.widths))
        )  # fmt: skip
        self.cache.plan(self._list_forward(0))

    def pin_busiest(self, num_pairs_ZE: Sequence[Sequence[int]]) -> None:
        """Keep the experts with most pairs times width in memory, as many as half of what need not pass through."""
        room = (self._most_bytes - 2 * self._count_widest()) // 2
        loads = {
            (place, own): row[expert] * width
            for place, (layer, row) in enumerate(zip(self._layers, num_pairs_ZE, strict=True))
            for own, (expert, width) in enumerate(zip(layer.home.experts, layer.widths, strict=True))
        }
        pinned = []
        for key in sorted(loads, key=loads.__getitem__, reverse=True):
            if self.count_bytes(key) <= room:
                pinned.append(key)
                room -= self.count_bytes(key)
        self.cache.pin(pinned)

    def settle(self) -> None:
        """Wait until every expert is where it lies, as it is."""
        self.let_go()
        self.cache.settle()

    @contextlib.contextmanager
    def look_at_all(self, changes: bool = False) -> Iterator[None]:
        """Give a context in which the parameters and moments are as they are, and where those may also change."""
        self.settle()
        if changes:
            self.cache.forget()
        with self.storage.look_at_all():
            yield

    def close(self) -> None:
        """End the work of this object; the model computes no more."""
        self.cache.close()
        self.storage.close()

    # What a layer calls in its passes.

    def begin_pass(self, place: int, x_TD: torch.Tensor, busy: Sequence[int], backward: bool) -> None:
        """Plan what is needed from a layer's pass over x on."""
        if self.next_experts is not None:
            guessed = self.next_experts.guess(place, x_TD, busy)
            self.cache.plan([*self._name(place, busy), *self._name(place + 1, guessed)])
            return
        if backward:
            del self._to_return[self._to_return.index(place) if place in self._to_return else 0 :]
            self.cache.plan([*self._name(place, busy), *self._list_backward(), *self._list_forward(0)])
            return
        self._busy[place] = busy
        idle = sorted(set(range(len(self._layers[place].widths))).difference(busy))
        self.cache.leave_idle(self._name(place, idle))
        following = self._list_forward(place + 1)
        if torch.is_grad_enabled():
            if self._to_return and place < self._to_return[-1]:  # the pass before was not gone back
                self._to_return.clear()
            if not self._to_return or place > self._to_return[-1]:
                self._to_return.append(place)
            following += self._list_backward()
        self.cache.plan([*self._name(place, busy), *following])

    def use(self, place: int, expert: int) -> Weights:
        """Return an expert's weights on the device, until the next call."""
        self.let_go()
        weights = self.cache.acquire((place, expert))
        self._current = (place, expert)
        return weights

    def let_go(self) -> None:
        """Give the expert back that was computed last."""
        current, self._current = self._current, None
        if current is not None:
            self.cache.release(current, self.record_event())

    def record_event(self) -> Callable[[], None] | None:
        """Return what waits until the device has done all that it was asked for so far; None: it has."""
        if self._stream is None:
            return None
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait

    def submit(self, task: Callable[[], None]) -> None:
        """Let the cache's thread do something before all else."""
        self.cache.submit(lambda: self._run_on_stream(task), MOST_WAITING_GRADIENTS)

    def _list_forward(self, first: int) -> list[Key]:
        places = range(first, len(self._layers))
        return [key for place in places for key in self._name(place, self._busy[place])]

    def _list_backward(self) -> list[Key]:
        return [key for place in reversed(self._to_return) for key in self._name(place, self._busy[place])]

    def _name(self, place: int, experts: Iterable[int]) -> list[Key]:
        return [(place, expert) for expert in experts]

    def _count_widest(self) -> int:
        sizes = (layer.count_bytes(own) for layer in self._layers for own in range(len(layer.widths)))
        return max(sizes, default=0)

    # What the cache's thread calls.

    def count_bytes(self, key: Key) -> int:
        """Return the memory that an expert's weights take."""
        place, expert = _split(key)
        return self._layers[place].count_bytes(expert)

    def fetch(self, key: Key, renews: bool) -> Weights:
        """Return an expert's weights in memory of their own, updated if it `renews`."""
        place, expert = _split(key)
        layer = self._layers[place]
        weights: Weights = self._run_on_stream(lambda: layer.read_weights(expert))
        if renews:
            self._run_on_stream(lambda: layer.update(expert, weights, self._scratch))
        return weights

    def renew(self, key: Key, weights: Weights | None) -> None:
        """Update an expert where it lies, and in memory."""
        place, expert = _split(key)
        self._run_on_stream(lambda: self._layers[place].update(expert, weights, self._scratch))

    @torch.no_grad()
    def _run_on_stream(self, work: Callable[[], Any]) -> Any:
        """Do something on a GPU beside what it computes, and wait until it has."""
        if self._stream is None:
            return work()
        with torch.cuda.stream(self._stream):
            result = work()
        self._stream.synchronize()
        return result


def _split(key: Key) -> tuple[int, int]:
    assert isinstance(key, tuple)
    return key
