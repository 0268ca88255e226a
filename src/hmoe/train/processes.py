"""What a training run asks of the processes that train a model together; one process answers for itself."""

import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from hmoe.parallel.fixed_order import TreeSum, measure_norm, sum_row_squares


class Processes(Protocol):
    """The processes of a training run, each of which computes some of a step's micro-batches.

    Attributes:
        rank, size: number of this process, and of all; the first one, 0, alone writes logs and prints.
        local_size: how many of them are on this machine.
        exact: whether results have the same bits with any number of processes.
    """

    rank: int
    size: int
    local_size: int
    exact: bool

    def begin_part(self, model: torch.nn.Module, is_last: bool) -> None:
        """Tell the model that a micro-batch follows; the gradients of all are wanted after a step's last one."""
        ...

    def end_parts(self, model: torch.nn.Module) -> None:
        """Leave the gradients of the step, those of all micro-batches, with the parameters."""
        ...

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, the same in each of them."""
        ...

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return a tensor of every process, all of one shape, in the order of their ranks."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return the JSON value of the first process."""
        ...

    def agree(self, stop: bool, save: bool, seconds: float) -> tuple[bool, bool, float]:
        """Return whether any process wants to stop, whether any wants to save, and the seconds of the first."""
        ...

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which an error of one process is one of all."""
        ...

    def gathering(self, model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which other methods than `forward` can be called of a model."""
        ...

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients as a plain scalar, also where a process holds a part of each."""
        ...

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float, norm: torch.Tensor) -> None:
        """Scale all gradients so that their norm, which is given, becomes the limit at most."""
        ...


class OneProcess:
    """A process that trains alone."""

    rank, size, local_size, exact = 0, 1, 1, False

    def begin_part(self, model: torch.nn.Module, is_last: bool) -> None:
        """Do nothing: gradients add up by themselves."""

    def end_parts(self, model: torch.nn.Module) -> None:
        """Do nothing: gradients have added up by themselves."""

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return tensor

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor alone."""
        return [tensor]

    def broadcast(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def agree(self, stop: bool, save: bool, seconds: float) -> tuple[bool, bool, float]:
        """Return all of them as they are."""
        return stop, save, seconds

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing: there is nobody to tell."""
        return contextlib.nullcontext()

    def gathering(self, model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing: the weights are all here."""
        return contextlib.nullcontext()

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of the gradients, a scalar on their device."""
        return torch.nn.utils.get_total_norm(gradients)

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float, norm: torch.Tensor) -> None:
        """Scale all gradients so that their norm, which is given, becomes the limit at most."""
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


class OneExactProcess(OneProcess):
    """A process that trains alone, with the bits that several have in exact mode (`hmoe.parallel.exact`)."""

    exact = True

    def __init__(self) -> None:
        self._sum = TreeSum()

    def begin_part(self, model: torch.nn.Module, is_last: bool) -> None:
        """Take the gradients of the micro-batch before, so that each has its own."""
        if any(parameter.grad is not None for parameter in model.parameters()):
            self._take_gradients(model)

    def end_parts(self, model: torch.nn.Module) -> None:
        """Put the sum of all micro-batches, in a fixed order, into the parameters."""
        self._take_gradients(model)
        for parameter, total in zip(model.parameters(), self._sum.take(), strict=True):
            parameter.grad = total

    def norm(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm of the gradients, a scalar on their device."""
        kept = list(gradients)
        return measure_norm(map(sum_row_squares, kept), kept[0].dtype if kept else torch.float32)

    def _take_gradients(self, model: torch.nn.Module) -> None:
        parameters = list(model.parameters())
        self._sum.add([parameter.grad for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None


ONE_PROCESS = OneProcess()


def choose_process(exact: bool) -> OneProcess:
    """Return a process that trains alone, as several would train in exact mode or not."""
    return OneExactProcess() if exact else ONE_PROCESS
