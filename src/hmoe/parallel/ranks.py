"""What the processes of a training step tell each other besides weights and gradients: sums, a norm, plain values."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hmoe.errors import ConfigError
from hmoe.parallel.dispatch import DispatchedExperts
from hmoe.parallel.expert_parallel import list_dispatched
from hmoe.parallel.group import Messages


class Ranks:
    """All processes of a mesh, between which a training step's micro-batches are shared.

    Attributes:
        mesh: of the processes.
        rank, size: number of this process, and of all.
        local_size: how many of them are on this machine; all, unless it is set.
        exact: whether results have the same bits with any number of processes (`hmoe.parallel.exact`).
    """

    exact = False

    def __init__(self, mesh: DeviceMesh, messages: Messages | None = None) -> None:
        self.mesh, self._messages = mesh, messages or Messages()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_size = self.size
        self._gathered: list[FSDPModule] = []
        self._reduced_at_once: list[FSDPModule] = []
        self._experts: list[DispatchedExperts] = []

    def adopt(self, model: nn.Module, num_parts: int, gathered: Iterable[nn.Module] = ()) -> None:
        """Make a model, which `parallelize` has shared, ready for steps of several micro-batches.

        Args:
            model: that is trained.
            num_parts: micro-batches of a step, of all processes together.
            gathered: modules of it whose weights may stay whole from one micro-batch to the next; gradients of the
                others are added up after each one, so that no process keeps whole ones.
        """
        self._experts = list(list_dispatched(model))
        self._gathered = [module for module in gathered if isinstance(module, FSDPModule)]
        others = set(model.modules()) - set(self._gathered)
        self._reduced_at_once = [module for module in others if isinstance(module, FSDPModule)]

    def begin_part(self, model: nn.Module, is_last: bool) -> None:
        """Let the processes' gradients be added up after a step's last micro-batch only, where weights stay whole.

        Until then each keeps whole gradients of its own, which spares the communication, not the memory.
        """
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(is_last)
        for module in self._reduced_at_once:
            module.set_requires_gradient_sync(True, recurse=False)
        self._keep_gathered(is_last)

    def _keep_gathered(self, is_last: bool) -> None:
        """Let weights that are whole stay so after a backward pass, but for a step's last."""
        for module in self._gathered:
            module.set_reshard_after_backward(is_last, recurse=False)

    def end_parts(self, model: nn.Module) -> None:
        """Do nothing: after the last micro-batch the engine has added up."""

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, the same in each of them."""
        total = tensor.clone()
        for axis in range(self.mesh.ndim):
            dist.all_reduce(total, group=self.mesh.get_group(axis))
        return total

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return a tensor of every process, all of one shape, in the order of their ranks."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous())
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return the JSON value of the first process."""
        return self.gather_values(value)[0]

    def gather_values(self, value: Any) -> list[Any]:
        """Return a JSON value of every process, in the order of their ranks."""
        return self._messages.gather_values(value)

    def agree(self, stop: bool, save: bool, seconds: float) -> tuple[bool, bool, float]:
        """Return whether any process wants to stop, whether any wants to save, and the seconds of the first."""
        wishes = torch.tensor(
            [float(stop), float(save), seconds if self.rank == 0 else 0.0], dtype=torch.float64
        )
        dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        return bool(wishes[0]), bool(wishes[1]), float(wishes[2])

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which an error of one process is one of all."""
        return self._messages.together()

    @contextlib.contextmanager
    def gathering(self, model: nn.Module) -> Iterator[None]:
        """Gather for a while what lies outside of blocks: then more than `forward` can be called of a model.

        Blocks gather their weights when they are called, as always. All processes must call the same.
        """
        shared = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in shared[:1]:
            module.unshard()
        try:
            yield
        finally:
            # All of them: weights that stay whole are no longer those that a checkpoint takes its rows of.
            for module in shared:
                module.reshard()

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients, those that are repeated counted once, as a plain scalar."""
        placed = self._experts[0].local.w_gate if self._experts else None
        placed_mesh = placed.device_mesh if isinstance(placed, DTensor) else None
        groups, norms = _group_by_mesh(gradients), []
        for mesh, group in groups.items():
            if mesh is not None and mesh.size() < self.size and placed_mesh is None:
                raise ConfigError(
                    "norm: a gradient is of experts that are placed, other processes have others; call "
                    "Ranks.adopt(model, num_parts) first"
                )
            norm = gather_whole(nn.utils.get_total_norm(group))
            if placed_mesh is not None and mesh == placed_mesh:  # each process of the group has other experts
                squares = norm.square()
                dist.all_reduce(squares, group=self._experts[0].group)
                norm = squares.sqrt()
            norms.append(norm)
        total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        return total

    def clip(self, parameters: Iterable[nn.Parameter], limit: float, norm: torch.Tensor) -> None:
        """Scale all gradients so that their norm, which is given, becomes the limit at most."""
        for group in _group_by_mesh(parameters).values():
            nn.utils.clip_grads_with_norm_(group, limit, norm)


def _group_by_mesh(tensors: Iterable[torch.Tensor]) -> dict[DeviceMesh | None, list[torch.Tensor]]:
    """Return tensors that are cut along the same axes together: PyTorch multiplies only those at once."""
    groups: dict[DeviceMesh | None, list[torch.Tensor]] = {}
    for tensor in tensors:
        mesh = tensor.device_mesh if isinstance(tensor, DTensor) else None
        groups.setdefault(mesh, []).append(tensor)
    return groups


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values, gathered from the processes where each holds a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
