"""What a router gives for some tokens, and what it is told of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hmoe.model.capacity import CapacityCounts
from hmoe.model.decisions import Decisions
from hmoe.model.waiting import get_constant


@dataclass(frozen=True)
class Routing:
    """Token-expert pairs sorted by expert (within an expert by token), and what the losses need.

    Attributes:
        token_N: token of each pair. A router whose number of pairs is not known beforehand appends pairs that
            are not real (token 0, gate 0) where asking for the number would wait: compiled, or in training on
            a GPU; num_tokens_E.sum() are real.
        expert_N: expert of each pair.
        gate_N: gate of each pair, float32 or float64; the gates of a token sum to 1 unless the router leaves them raw.
        logits_TE: router logits.
        probs_TE: softmax of the logits over all experts (HMoE eq 7), or sigmoid scores divided by their sum.
        num_tokens_E: number of pairs of each expert, int64.
        asked_E: tokens that chose each expert before anything was dropped or rectified; None: num_tokens_E.
        slots: what a capacity did, None without one.
    """

    token_N: torch.Tensor
    expert_N: torch.Tensor
    gate_N: torch.Tensor
    logits_TE: torch.Tensor
    probs_TE: torch.Tensor
    num_tokens_E: torch.Tensor
    asked_E: torch.Tensor | None = None
    slots: CapacityCounts | None = None

    @property
    def load_E(self) -> torch.Tensor:
        """Tokens that chose each expert, whether or not a capacity then refused them: what losses balance."""
        return self.num_tokens_E if self.asked_E is None else self.asked_E

    def width_T(self, widths: Sequence[int]) -> torch.Tensor:
        """Return the hidden units that each token activated, float64."""
        width_N = get_constant(tuple(widths), torch.float64, self.expert_N.device)[self.expert_N]
        real_N = torch.arange(len(width_N), device=width_N.device) < self.num_tokens_E.sum()
        width_N = width_N.masked_fill(~real_N, 0)
        return torch.zeros(len(self.probs_TE), dtype=torch.float64, device=width_N.device).index_add(
            0, self.token_N, width_N
        )


class RouterInputs(NamedTuple):
    """What a router may be told of the tokens beside their content.

    Attributes:
        top_p_T: threshold of a top-p router for each token.
        token_rank_T, expert_rank_E: rank where each token and expert lives, for `rectify`; None: simulated.
        noise_seed: of the random numbers of one training step and layer.
        real_T: False for padding, which takes no slot where experts have a limit; None: no token is. Other
            routers route padding like any token, which changes nothing for the others.
        decisions: those of an earlier pass over the same tokens, for a recomputation; None: decide.
    """

    top_p_T: torch.Tensor | None = None
    token_rank_T: torch.Tensor | None = None
    expert_rank_E: torch.Tensor | None = None
    noise_seed: int | torch.Tensor | None = None
    real_T: torch.Tensor | None = None
    decisions: Decisions | None = None


class RouterState(NamedTuple):
    """What a choice depends on beside logits and spec.

    Attributes:
        widths: hidden units of each expert; 0: it computes nothing. None: all alike.
        bias_E: added to the scores for choosing.
        gumbel_TE: noise of all choices but the first.
        inputs: see there.
        training: which capacity factor holds.
        true_gates: gates are renormalised over experts that compute.
        off_E: experts that are switched off: never chosen, and their probability goes to nobody; None: none is.
    """

    widths: Sequence[int] | None = None
    bias_E: torch.Tensor | None = None
    gumbel_TE: torch.Tensor | None = None
    inputs: RouterInputs = RouterInputs()
    training: bool = True
    true_gates: bool = False
    off_E: torch.Tensor | None = None
