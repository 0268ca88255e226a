"""Pairs where their number is known without asking the device: as under torch.compile, and on a GPU."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hmoe import ExpertChoice, TopK, TopP
from hmoe.model.router import route_tokens
from hmoe.specs.routers.base import RouterSpec


class Scans(TorchDispatchMode):
    """Notes whether a running sum went along the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.contiguous: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "cumsum" in str(function):
            self.contiguous.append(args[1] % args[0].dim() == args[0].dim() - 1)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", [TopK(1), TopK(3), TopP(0.6), ExpertChoice(2.0)], ids=lambda spec: spec.name)
def test_they_are_those_that_nonzero_finds_and_no_scan_runs_over_the_tokens(
    spec: RouterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = Scans()
    for tokens in (0, 1, 9, 130):
        logits = torch.randn(tokens, 5)
        logits[:, 2] -= 40  # an expert without tokens
        eager = route_tokens(logits, spec)
        with monkeypatch.context() as patch, scans:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            fixed = route_tokens(logits, spec)
        real = int(eager.num_tokens_E.sum())
        for name in ("token_N", "expert_N", "gate_N"):
            assert torch.equal(getattr(fixed, name)[:real], getattr(eager, name))
        assert not fixed.gate_N[real:].any()
    assert scans.contiguous
    assert all(scans.contiguous), "over the tokens of (T, E) a GPU scans each column with a single thread"
