"""Which experts the next layer will need, guessed by its own router from what this layer reads."""

from collections.abc import Sequence

import torch
from torch import nn

from hmoe.model.moe import MoE
from hmoe.model.router import RouterLayer

_FEWEST_GUESSES = 64  # experts that are guessed before anybody relies on it
_LEAST_SHARE = (
    0.5  # of guesses that must have been right: a wrong one is fetched in vain, and takes another's room
)


class NextExperts:
    """Guesses by the next layer's router, applied one layer early; given up while it is more often wrong than right.

    The residual stream changes little from a layer to the next, so its logits are near those that will come
    (Eliseev and Mazur, arXiv 2312.17238, section 3.2).

    Attributes:
        num_guessed, num_right: experts that were guessed, and of these those that were needed.
    """

    def __init__(self, model: nn.Module, num_experts: Sequence[Sequence[int]]) -> None:
        self._routers: list[RouterLayer] = [each.router for each in model.modules() if isinstance(each, MoE)]
        self._num_experts = [len(experts) for experts in num_experts]
        self.num_guessed = self.num_right = 0
        self._last: tuple[int, set[int]] = (-1, set())

    @property
    def pays(self) -> bool:
        """Whether enough guesses were right."""
        return self.num_guessed < _FEWEST_GUESSES or self.num_right >= _LEAST_SHARE * self.num_guessed

    @torch.no_grad()
    def guess(self, layer: int, x_TD: torch.Tensor, busy: Sequence[int]) -> list[int]:
        """Return experts that the layer after this one will need, the likeliest first; none if guessing does not pay.

        Args:
            layer: number of this one.
            x_TD: what it reads.
            busy: experts that it needs; as many are guessed.
        """
        place, guessed = self._last
        if place == layer:
            self.num_guessed += len(guessed)
            self.num_right += len(guessed.intersection(busy))
        if layer + 1 == len(self._routers):
            return []
        router, num_experts = self._routers[layer + 1], self._num_experts[layer + 1]
        logits_TE = nn.functional.linear(x_TD.float(), router.weight.float())
        if router.bias_E is not None:
            logits_TE = logits_TE + router.bias_E
        score_E = logits_TE.softmax(1)[:, :num_experts].amax(0)
        experts: list[int] = score_E.topk(min(len(busy), num_experts)).indices.tolist()
        self._last = (layer + 1, set(experts))
        return experts if self.pays else []
