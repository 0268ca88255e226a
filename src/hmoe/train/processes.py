"""What a training step asks of the processes that train a model together; one process answers for itself."""

from collections.abc import Iterable
from typing import Protocol

import torch


class Processes(Protocol):
    """The processes of a training step, each of which computes some of its micro-batches."""

    def begin_part(self, model: torch.nn.Module, is_last: bool) -> None:
        """Tell the model that a micro-batch follows; the gradients of all are wanted after a step's last one."""
        ...

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, the same in each of them."""
        ...

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients as a plain scalar, also where a process holds a part of each."""
        ...

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float, norm: torch.Tensor) -> None:
        """Scale all gradients so that their norm, which is given, becomes the limit at most."""
        ...


class OneProcess:
    """A process that trains alone."""

    def begin_part(self, model: torch.nn.Module, is_last: bool) -> None:
        """Do nothing: gradients add up by themselves."""

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return tensor

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of the gradients, a scalar on their device."""
        return torch.nn.utils.get_total_norm(gradients)

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float, norm: torch.Tensor) -> None:
        """Scale all gradients so that their norm, which is given, becomes the limit at most."""
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


ONE_PROCESS = OneProcess()
