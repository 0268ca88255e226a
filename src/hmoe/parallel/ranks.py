"""What the processes of a training step tell each other besides weights and gradients: sums, and a norm."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class Ranks:
    """All processes of a mesh, between which a training step's micro-batches are shared."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def begin_part(self, model: nn.Module, is_last: bool) -> None:
        """Let the processes' gradients be added up after a step's last micro-batch only.

        Until then each keeps whole gradients of its own, which spares the communication, not the memory.
        """
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(is_last)

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, the same in each of them."""
        total = tensor.clone()
        for axis in range(self.mesh.ndim):
            dist.all_reduce(total, group=self.mesh.get_group(axis))
        return total

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients, those that are repeated counted once, as a plain scalar."""
        norms = [gather_whole(nn.utils.get_total_norm(group)) for group in _group_by_mesh(gradients)]
        total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        return total

    def clip(self, parameters: Iterable[nn.Parameter], limit: float, norm: torch.Tensor) -> None:
        """Scale all gradients so that their norm, which is given, becomes the limit at most."""
        for group in _group_by_mesh(parameters):
            nn.utils.clip_grads_with_norm_(group, limit, norm)


def _group_by_mesh(tensors: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Return tensors that are cut along the same axes together: PyTorch multiplies only those at once."""
    groups: dict[object, list[torch.Tensor]] = {}
    for tensor in tensors:
        mesh = tensor.device_mesh if isinstance(tensor, DTensor) else None
        groups.setdefault(mesh, []).append(tensor)
    return groups.values()


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values, gathered from the processes where each holds a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
