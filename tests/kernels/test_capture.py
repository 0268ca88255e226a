"""A CUDA graph that begins with a layer's first call is refused in one line; the graph itself is tested on a GPU."""

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.kernels.capture import check_first_call
from hmoe.kernels.ragged import launch, router, shapes
from tests.kernels.cases import INTERPRETED


def test_the_first_call_must_come_before_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    device, capturing = torch.device("cuda", 7), [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"expert_ffn: its first call .* before the capture"):
            check_first_call("expert_ffn", (16, 32), device)
    capturing[0] = False
    check_first_call("expert_ffn", (16, 32), device)
    capturing[0] = True
    check_first_call("expert_ffn", (16, 32), device)  # not the first any more
    with pytest.raises(ConfigError):
        check_first_call("expert_ffn", (16, 48), device)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter")
def test_a_pass_that_loads_other_kernels_is_a_first_call_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a capture of the backward pass, or of a larger batch, would fail in CUDA's own words."""
    seen: list[object] = []
    for module in (launch, router):
        monkeypatch.setattr(
            module, "check_first_call", lambda caller, sizes, device: seen.append((caller, sizes))
        )
    monkeypatch.setattr("hmoe.model.router.fuses_router", lambda logits_TE: True)

    def calls(dim: int, tokens: int, train: bool) -> set[object]:
        seen.clear()
        moe = hmoe.MoE(dim, (16, 32), hmoe.TopK(2)).half()
        moe.backend = "triton"
        with torch.set_grad_enabled(train):
            y = moe(torch.zeros(tokens, dim).half())[0]
        if train:
            y.sum().backward()
        return set(seen)

    served, trained = calls(16, 2, train=False), calls(16, 2, train=True)
    assert len(served) == 2, "experts and router"
    assert len(trained) == 4, "the same backward"
    assert len(trained - served) == 3, "the router's forward pass is that of serving"
    assert len(calls(32, 2, train=True) - trained) == 2, "another width, the same router"
    assert calls(16, 1, train=True) == trained
    monkeypatch.setattr(shapes, "FEW_ROWS", 1)
    assert len(calls(16, 1, train=True) - trained) == 2, "other tile shapes"
