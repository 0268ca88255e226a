"""When the host may ask a device for a value."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmoe.model.waiting import may_wait


def test_a_compiler_never_sees_the_question_about_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot trace it: `torch.compile(fullgraph=True)` of a top-p layer would fail on a GPU."""
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: asked.append(1) or len(asked) == 1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        assert not may_wait(on_gpu)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert not may_wait(on_gpu), "in training"
    assert not asked
    with torch.no_grad():
        assert [may_wait(on_gpu), may_wait(on_gpu)] == [False, True]
