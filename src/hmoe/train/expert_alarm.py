"""Experts that get no tokens, and routers that use few experts: announced once, when it begins to last."""

import math
from typing import Any

# Of a layer's pairs, held by as few experts as its tokens can choose: from here on the router collapsed.
_COLLAPSED_SHARE = 0.99


class ExpertAlarm:
    """Follows every expert of every MoE layer; its state is plain numbers and part of the checkpoint.

    Args:
        shape: number of MoE layers, number of experts.
        patience: steps that a fault lasts before it is announced.
        state: what an earlier alarm gave as `state`; None: nothing has happened yet.
    """

    def __init__(self, shape: tuple[int, int], patience: int, state: dict[str, Any] | None = None) -> None:
        num_layers, num_experts = shape
        self.patience = patience
        self.idle = state["idle"] if state else [[0] * num_experts for _ in range(num_layers)]
        self.collapsed = state["collapsed"] if state else [0] * num_layers

    def state(self) -> dict[str, Any]:
        """Return the steps without a token per layer and expert, and the steps collapsed per layer."""
        return {"idle": self.idle, "collapsed": self.collapsed}

    def update(self, num_pairs_ZE: list[list[int]], num_tokens: int, widths: tuple[int, ...]) -> list[str]:
        """Take in the pairs of one step; return what is announced, a line each."""
        lines = []
        for layer, num_pairs_E in enumerate(num_pairs_ZE):
            lines += self._follow_experts(layer, num_pairs_E, widths)
            lines += self._follow_router(layer, num_pairs_E, num_tokens)
        return lines

    def _follow_experts(self, layer: int, num_pairs_E: list[int], widths: tuple[int, ...]) -> list[str]:
        idle_E, lines = self.idle[layer], []
        for expert, num_pairs in enumerate(num_pairs_E):
            idle_E[expert] = 0 if num_pairs else idle_E[expert] + 1
            if idle_E[expert] == self.patience:  # not more: an expert that stays idle is announced once
                lines.append(
                    f"MoE layer {layer}: expert {expert} (width {widths[expert]}) got no token "
                    f"for {self.patience} steps"
                )
        return lines

    def _follow_router(self, layer: int, num_pairs_E: list[int], num_tokens: int) -> list[str]:
        total = sum(num_pairs_E)
        # A token cannot go to one expert twice, so its experts per token, rounded up, are the
        # fewest that can serve all tokens.
        fewest = math.ceil(total / num_tokens)
        held = sum(sorted(num_pairs_E)[-fewest:])
        # Where the fewest are more than half of the experts, as with k = 2 of 3,
        # holding nearly all pairs is no fault.
        collapsed = 2 * fewest <= len(num_pairs_E) and held >= _COLLAPSED_SHARE * total
        self.collapsed[layer] = self.collapsed[layer] + 1 if collapsed else 0
        if self.collapsed[layer] != self.patience:
            return []
        return [
            f"MoE layer {layer}: the router collapsed, {fewest} of {len(num_pairs_E)} experts took "
            f"{held / total:.0%} of the work for {self.patience} steps; "
            "a higher load_balance or parameter_penalty spreads it"
        ]
