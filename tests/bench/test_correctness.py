"""A layer whose numbers are wrong is not timed."""

import pytest
import torch

from hmoe.bench import correctness, layer
from hmoe.errors import HMoEError


def test_a_wrong_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = correctness.expert_ffn
    monkeypatch.setattr(correctness, "expert_ffn", lambda *a: real(*a) * (1.01 if a[-1] is None else 1))
    with pytest.raises(HMoEError, match=r"y of \w*Shape.* above twice PyTorch's .* nothing was timed"):
        correctness.check_layer_results(layer.LayerShape(32, (16, 48), 1, 29), torch.float32, "cpu")
