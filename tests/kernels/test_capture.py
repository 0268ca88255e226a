"""A CUDA graph that begins with a layer's first call is refused in one line; the graph itself is tested on a GPU."""

import pytest
import torch

from hmoe import ConfigError
from hmoe.kernels.capture import check_first_call


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
