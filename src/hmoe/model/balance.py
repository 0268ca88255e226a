"""What a training step counts of its routers, and the balance that needs no loss: biases that move against the load."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from hmoe.model.hyper import distinct, selected
from hmoe.model.router import RouterLayer
from hmoe.model.routing import Routing


class Tally(NamedTuple):
    """Counts per MoE layer, which add up over micro-batches.

    Attributes:
        pairs_LE: token-expert pairs that were computed.
        asked_LE: tokens that chose an expert, before anything was dropped.
        slots_SL: what capacities did (`capacity.Slots`); no rows without them.
        selections_L: distinct sets of experts that a token selected, for each of which a HyperExpert was made.
    """

    pairs_LE: torch.Tensor
    asked_LE: torch.Tensor
    slots_SL: torch.Tensor
    selections_L: torch.Tensor


def tally(routings: Sequence[Routing], device: torch.device, hyper: bool = False) -> Tally:
    """Of one forward pass on a device; distinct selections are counted only for a model with HyperExperts."""
    if not routings:
        none = torch.zeros(0, 0, dtype=torch.int64, device=device)
        return Tally(none, none, none, none.flatten())
    slots = [torch.stack(list(r.slots)) for r in routings if r.slots is not None]
    pairs, asked = torch.stack([r.num_tokens_E for r in routings]), torch.stack([r.load_E for r in routings])
    selections = pairs.new_zeros(len(routings))
    if hyper:  # how many there are is known to the host only after a wait
        selections = pairs.new_tensor([len(distinct(selected(r))[0]) for r in routings])
    stacked = torch.stack(slots, dim=1) if slots else pairs.new_zeros(0, 0)
    return Tally(pairs, asked, stacked, selections)


def balance(model: nn.Module, asked_LE: torch.Tensor) -> None:
    """Move the biases of routers that have one (Wang et al. 2408.15664); once per training step, with the step's counts."""
    routers = [module for module in model.modules() if isinstance(module, RouterLayer)]
    for router, asked_E in zip(routers, asked_LE, strict=True):
        if router.bias_E is not None:
            router.update_bias(asked_E)
