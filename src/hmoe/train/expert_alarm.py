"""Experts that stopped getting tokens and routers that use few experts: announced once, when it begins to last."""

import math
from typing import Any

_FEW_HOLD = 0.99  # share of pairs that the fewest possible experts hold in a collapsed layer


class Watch:
    """Follows every expert of every MoE layer; its state is plain numbers and part of the checkpoint.

    Args:
        shape: MoE layers, experts.
        patience: steps that a fault lasts before it is announced.
    """

    def __init__(self, shape: tuple[int, int], patience: int, state: dict[str, Any] | None = None) -> None:
        layers, experts = shape
        self.patience = patience
        self.idle = state["idle"] if state else [[0] * experts for _ in range(layers)]
        self.collapsed = state["collapsed"] if state else [0] * layers

    def state(self) -> dict[str, Any]:
        """Steps without a token per layer and expert, steps collapsed per layer."""
        return {"idle": self.idle, "collapsed": self.collapsed}

    def update(self, pairs_LE: list[list[int]], tokens: int, widths: tuple[int, ...]) -> list[str]:
        """Take in one step's pairs; return announcements."""
        said = []
        for layer, pairs_E in enumerate(pairs_LE):
            for expert, pairs in enumerate(pairs_E):
                self.idle[layer][expert] = 0 if pairs else self.idle[layer][expert] + 1
                if self.idle[layer][expert] == self.patience:
                    said.append(
                        f"MoE layer {layer}: expert {expert} (width {widths[expert]}) got no token for {self.patience} steps"
                    )
            few = math.ceil(sum(pairs_E) / tokens)
            held = sum(sorted(pairs_E)[-few:])
            collapsed = 2 * few <= len(pairs_E) and held >= _FEW_HOLD * sum(pairs_E)
            self.collapsed[layer] = self.collapsed[layer] + 1 if collapsed else 0
            if self.collapsed[layer] == self.patience:
                said.append(
                    f"MoE layer {layer}: the router collapsed, {few} of {len(pairs_E)} experts took {held / sum(pairs_E):.0%} of "
                    f"the work for {self.patience} steps; a higher load_balance or parameter_penalty spreads it"
                )
        return said
