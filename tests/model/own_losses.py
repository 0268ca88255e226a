"""Losses of one's own that the documents show: what their files register, without registering it."""

from collections.abc import Callable

import pytest
import torch

import hmoe
from hmoe.model.statistics import RouterStatistics
from hmoe.specs.model import MoESpec


def measure_own_loss(
    code: str, name: str, statistics: RouterStatistics, widths: tuple[int, ...]
) -> torch.Tensor:
    """Return the loss of a name that a file's code registers; width 0 is an expert without hidden units."""
    registered: dict[str, Callable[[RouterStatistics, MoESpec], torch.Tensor]] = {}

    def register(
        name: str, function: Callable[..., torch.Tensor], summary: str, unequal_only: bool = False
    ) -> None:
        registered[name] = function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmoe, "register_loss", register)
        exec(compile(code, f"{name}.py", "exec"), {})
    computing, zeros = tuple(width for width in widths if width), widths.count(0)
    moe = MoESpec(widths=computing, zero=hmoe.ZeroExperts(null=zeros) if zeros else None)
    return registered[name](statistics, moe)
