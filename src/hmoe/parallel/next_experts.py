"""Which experts the next layer will need, guessed by its own router from what this layer reads."""

from collections.abc import Container, Sequence

import torch
from torch import nn

from hmoe.model.moe import MoE
from hmoe.model.router import RouterLayer
from hmoe.parallel.expert_store import Key

_FEWEST_GUESSES = 64  # experts that are guessed before anybody relies on it
_WINDOW = 1024  # guesses after which those before count half
_LEAST_SHARE = (
    0.5  # of guesses that must have been right: a wrong one is fetched in vain, and takes another's room
)
_PAUSE = 16  # layers of which one is guessed while guessing does not pay


class NextExperts:
    """Guesses by the next layer's router, applied one layer early; given up while it is more often wrong than right.

    The residual stream changes little from a layer to the next, so its logits are near those that will come
    (Eliseev and Mazur, arXiv 2312.17238, section 3.2). Experts that are in memory need no guess, and where most of a
    layer's are needed none says anything: neither counts.

    Args:
        model: whose layers of `hmoe.MoE` are numbered in their order.
        present: experts in memory, as (layer, expert).

    Attributes:
        num_guessed, num_right: experts that were guessed, and of these those that were needed.
    """

    def __init__(self, model: nn.Module, present: Container[Key]) -> None:
        layers = [module for module in model.modules() if isinstance(module, MoE)]
        self._routers: list[RouterLayer] = [layer.router for layer in layers]
        self._num_experts = [len(layer.widths) for layer in layers]
        self._present = present
        self.num_guessed = self.num_right = 0
        self._guessed = self._right = 0.0  # of late
        self._calls = 0
        self._last: tuple[int, set[int]] = (-1, set())

    @property
    def pays(self) -> bool:
        """Whether enough of the last guesses were right."""
        return self._guessed < _FEWEST_GUESSES or self._right >= _LEAST_SHARE * self._guessed

    @torch.no_grad()
    def guess(self, layer: int, x_TD: torch.Tensor, busy: Sequence[int]) -> list[int]:
        """Return experts that the layer after this one will need, the likeliest first; none if guessing does not pay.

        Args:
            layer: number of this one.
            x_TD: what it reads.
            busy: experts that it needs; as many are guessed.
        """
        self._count(layer, busy)
        self._calls += 1
        if layer + 1 == len(self._routers) or not (self.pays or self._calls % _PAUSE == 0):
            return []
        router, num_experts = self._routers[layer + 1], self._num_experts[layer + 1]
        logits_TE = nn.functional.linear(x_TD.float(), router.weight.float())
        if router.bias_E is not None:
            logits_TE = logits_TE + router.bias_E
        score_E = logits_TE.softmax(1)[:, :num_experts].amax(0)
        experts: list[int] = score_E.topk(min(len(busy), num_experts)).indices.tolist()
        if 2 * len(busy) <= num_experts:
            self._last = (layer + 1, {i for i in experts if (layer + 1, i) not in self._present})
        return experts if self.pays else []

    def _count(self, layer: int, busy: Sequence[int]) -> None:
        place, guessed = self._last
        if place != layer:
            return
        right = len(guessed.intersection(busy))
        self.num_guessed, self.num_right = self.num_guessed + len(guessed), self.num_right + right
        self._guessed, self._right = self._guessed + len(guessed), self._right + right
        if self._guessed > _WINDOW:
            self._guessed, self._right = self._guessed / 2, self._right / 2
        self._last = (-1, set())
