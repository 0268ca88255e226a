"""What a training step counts of its routers, and biases that move against the load (no loss needed)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from hmoe.model.hyper import find_distinct_selections, find_selected
from hmoe.model.router import RouterLayer
from hmoe.model.routing import Routing


class RoutingCounts(NamedTuple):
    """Counts of MoE layers (Z), integers that add up over micro-batches and processes.

    Attributes:
        num_pairs_ZE: token-expert pairs that were computed.
        num_asked_ZE: tokens that chose an expert, before anything was dropped.
        slots: what capacities did, a row for each field of `capacity.CapacityCounts`, a column for
            each MoE layer; empty without them.
        num_selections_Z: distinct sets of experts that a token selected, for each of
            which a HyperExpert was generated.
    """

    num_pairs_ZE: torch.Tensor
    num_asked_ZE: torch.Tensor
    slots: torch.Tensor
    num_selections_Z: torch.Tensor


def count_routings(routings: Sequence[Routing], device: torch.device, hyper: bool = False) -> RoutingCounts:
    """Return the counts of one forward pass; distinct selections are 0 for a model without HyperExperts."""
    if not routings:
        no_rows = torch.zeros(0, 0, dtype=torch.int64, device=device)
        return RoutingCounts(no_rows, no_rows, no_rows, no_rows.flatten())
    slots = [torch.stack(list(routing.slots)) for routing in routings if routing.slots is not None]
    num_pairs_ZE = torch.stack([routing.num_tokens_E for routing in routings])
    num_asked_ZE = torch.stack([routing.load_E for routing in routings])
    num_selections_Z = num_pairs_ZE.new_zeros(len(routings))
    if hyper:
        # The host knows how many there are only after a wait; HyperExperts have waited already.
        num_selections_Z = num_pairs_ZE.new_tensor(
            [len(find_distinct_selections(find_selected(routing))[0]) for routing in routings]
        )
    slot_table = torch.stack(slots, dim=1) if slots else num_pairs_ZE.new_zeros(0, 0)
    return RoutingCounts(num_pairs_ZE, num_asked_ZE, slot_table, num_selections_Z)


def update_router_biases(model: nn.Module, num_asked_ZE: torch.Tensor) -> None:
    """Move the biases of routers that have one, once per training step (Wang et al. 2408.15664)."""
    routers = [module for module in model.modules() if isinstance(module, RouterLayer)]
    for router, num_asked_E in zip(routers, num_asked_ZE, strict=True):
        if router.bias_E is not None:
            router.update_bias(num_asked_E)
