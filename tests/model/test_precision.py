"""Autocast is asked for in ways that every PyTorch we accept can compile, and that devices without autocast survive."""

from collections.abc import Callable

import pytest
import torch

from hmoe.model import precision

QUESTIONS: tuple[Callable[[torch.device], object], ...] = (
    precision.find_autocast_dtype,
    precision.disable_autocast,
    lambda device: precision.use_mixed_precision(device, on=False),
)


@pytest.mark.parametrize("ask", QUESTIONS)
def test_a_compiler_never_sees_whether_a_device_knows_autocast(
    ask: Callable[[torch.device], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch 2.11 cannot trace that question: `torch.compile(fullgraph=True)` of a layer failed on a GPU."""
    asked: list[str] = []
    monkeypatch.setattr(torch.amp, "is_autocast_available", asked.append)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ask(torch.device("cpu"))
    assert asked == []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    ask(torch.device("cpu"))
    assert asked == ["cpu"]


def test_a_device_without_autocast_has_none() -> None:
    meta = torch.device("meta")
    assert precision.find_autocast_dtype(meta) is None
    with precision.disable_autocast(meta), precision.use_mixed_precision(meta, on=False):
        pass
    with torch.autocast("cpu", torch.bfloat16):
        assert precision.find_autocast_dtype(torch.device("cpu")) is torch.bfloat16
        with precision.disable_autocast(torch.device("cpu")):
            assert precision.find_autocast_dtype(torch.device("cpu")) is None
