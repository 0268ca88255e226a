"""Loads of a whole batch in losses of its micro-batches (Qiu et al. 2025, arXiv:2501.11873)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from hmoe.model.statistics import RouterStatistics


class BatchLoads:
    """Adds up the loads of a batch's micro-batches, in the order in which they are computed.

    A loss E sum_i T_i w_i P_i of a micro-batch then has its own P_i, and T_i of all tokens so far, its own among
    them: the last one has the batch's, and so has every one where each process computes one micro-batch. The first
    ones have less. That is the source's buffer, and no exact way is cheap: P_i's gradient must wait for the
    last T_i, so all graphs would have to be kept, or every forward pass computed twice.
    """

    def __init__(self, add: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`add` sums a tensor over the processes, which compute their micro-batches side by side."""
        self._add = add
        self._load: torch.Tensor | int = 0
        self._num_tokens: int | torch.Tensor = 0
        self._is_whole = False

    @classmethod
    def of_all(
        cls, measured: Sequence[RouterStatistics], add: Callable[[torch.Tensor], torch.Tensor]
    ) -> "BatchLoads":
        """Return the loads of a whole batch, given the statistics of all of a process's micro-batches before."""
        loads = cls(add)
        for statistics in measured:
            loads.include(statistics)
        loads._is_whole = True
        return loads

    def include(self, statistics: RouterStatistics) -> RouterStatistics:
        """Return the statistics of the next micro-batch with the loads of all so far, or of the whole batch."""
        if self._is_whole and isinstance(self._load, torch.Tensor):
            return replace(statistics, load_E=self._load, num_load_tokens=self._num_tokens)
        load = statistics.load_E
        num_tokens = torch.full((), 1, dtype=load.dtype, device=load.device) * statistics.num_tokens
        self._load = self._load + self._add(load)
        self._num_tokens = self._num_tokens + self._add(num_tokens)
        return replace(statistics, load_E=self._load, num_load_tokens=self._num_tokens)
