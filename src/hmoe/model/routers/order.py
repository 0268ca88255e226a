"""The largest of each row, with the lowest index first among equals on every device."""

import torch

from hmoe.model.waiting import would_wait


def choose_largest(value_TE: torch.Tensor, k: int) -> torch.Tensor:
    """Choose the k largest of each row, lowest index first among equals; return boolean (T, E).

    `topk` is a third of a stable sort's time, but which of equals it takes is not said.
    """
    value_TE = value_TE.nan_to_num(torch.inf, torch.inf, -torch.inf)  # a row with NaN has k choices too
    kth_T1 = value_TE.topk(k, dim=1).values[:, -1:]
    reach_TE = value_TE >= kth_T1
    if not would_wait(reach_TE) and int(reach_TE.sum()) == k * len(reach_TE):
        return reach_TE  # no ties: nearly always, and worth asking where it costs no synchronisation
    above_TE = value_TE > kth_T1
    equal_TE = reach_TE & ~above_TE
    return above_TE | (equal_TE & (equal_TE.cumsum(1) <= k - above_TE.sum(1, keepdim=True)))


def rank_largest(value_TE: torch.Tensor, k: int) -> torch.Tensor:
    """Return indices (T, k) of the k largest of each row, descending, lowest index first among equals."""
    value_TE = value_TE.nan_to_num(torch.inf, torch.inf, -torch.inf)
    return torch.argsort(value_TE, dim=1, descending=True, stable=True)[:, :k]
