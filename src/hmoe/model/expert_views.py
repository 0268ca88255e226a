"""The rows of one expert among a layer's weights, wherever this process keeps them."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from hmoe.model.routing import Routing


class PlacedExperts(Protocol):
    """What runs a layer's experts where they do not all live in this process (`hmoe.parallel.dispatch`).

    Attributes:
        local_experts: those of which this process has all hidden units.
        exact: whether results have the bits of one process.
    """

    local_experts: Sequence[int]
    exact: bool

    def __call__(
        self, x_TD: torch.Tensor, routing: "Routing", shared: nn.Module | None, backend: str | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the sum of each token's experts times their gates (T, D), and the same of the shared expert.

        None: that was not computed meanwhile, and is for the layer to compute.
        """
        ...

    def list_ranks(
        self, num_tokens: int, num_experts: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ranks of this process's tokens, and those of the experts."""
        ...

    def find_home(self, expert: int) -> nn.Module:
        """Return the module that has the matrices in which the rows of an expert are."""
        ...

    def select_rows(self, expert: int, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the rows of an expert in tensors laid out as those matrices."""
        ...


def list_expert_weights(moe: Any, i: int) -> list[nn.Parameter]:
    """Return the three matrices in which the rows of expert i are."""
    home: nn.Module = moe if moe.experts is None else moe.experts.find_home(_find_place(moe, i))
    return [cast(nn.Parameter, weight) for weight in (home.w_gate, home.w_up, home.w_down)]


def slice_expert(
    moe: Any, i: int, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows of expert i in tensors laid out as those matrices: (h_i, D), (h_i, D), and (D, h_i)."""
    place = _find_place(moe, i)
    if moe.experts is None:
        gate, up, down = (torch.split(tensor, list(moe.widths))[place] for tensor in tensors)
    else:
        gate, up, down = moe.experts.select_rows(place, tensors)
    return gate, up, down.T


def _find_place(moe: Any, i: int) -> int:
    """Return the place of expert i among all, counted from the end where it is negative."""
    place, num_experts = operator.index(i), len(moe.widths)
    if not -num_experts <= place < num_experts:
        raise IndexError(
            f"expert {place}: must be from 0 to {num_experts - 1}, or from -{num_experts} to -1 from the end"
        )
    return place % num_experts
