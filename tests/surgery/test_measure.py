"""Importance of hidden units against loops over tokens; widths that follow from it, by hand."""

import pytest
import torch

from hmoe import ConfigError
from hmoe.surgery.measure import choose_measured_widths, measure_unit_importance, record_ffn_inputs
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from tests import oracles
from tests.surgery.helpers import DENSE, target, tokens, trained


@pytest.mark.parametrize("moe", [False, True])
def test_importance_is_load_times_activation_times_output(moe: bool) -> None:
    model = trained() if moe else trained(**DENSE)
    x = torch.randn(33, 16, dtype=torch.float64)
    ffn = model.blocks[0].ffn
    importances = measure_unit_importance(ffn, x)
    for expert in range(3 if moe else 1):
        w_gate, w_up, w_down = ffn.expert(expert) if moe else (ffn.w_gate, ffn.w_up, ffn.w_down.T)
        expected = torch.zeros(len(w_gate), dtype=torch.float64)
        for row in x:
            gate = torch.ones(())
            if moe:
                logits = ffn.router.weight @ row
                chosen = oracles.chosen(logits, 2)
                probs = oracles.probabilities(logits)
                if expert not in chosen:
                    continue
                gate = probs[expert] / sum(probs[i] for i in chosen)
            before = w_gate @ row
            expected += (
                gate * (before / (1 + torch.exp(-before)) * (w_up @ row)).abs() * w_down.norm(dim=0) / len(x)
            )
        torch.testing.assert_close(importances[expert], expected.detach(), rtol=1e-10, atol=1e-12)


def test_what_is_measured_knows_no_noise_and_no_hyper_experts() -> None:
    """Both would be asked for seeds, or for the model's hypernetwork, which one layer does not have."""
    hyper = {"dim": 3, "init": "zero"}
    source = trained(moe={"widths": [12, 12, 12], "hyper": hyper})
    inputs = record_ffn_inputs(source, [tokens()])
    router = {"name": "top_k", "k": 2, "jitter": 0.1, "gumbel": True}
    model, errors = upcycle_model(
        source, target({"widths": [12, 12, 12], "router": router, "hyper": hyper}), UnitChoice(), inputs
    )
    assert max(errors) < 1e-12
    torch.testing.assert_close(model(tokens())[0], source(tokens())[0], rtol=1e-9, atol=1e-9)


def test_measured_widths() -> None:
    layers = [
        [torch.tensor([9.0, 8, 7, 1]), torch.tensor([6.0, 0, 0, 0])],
        [torch.tensor([1.0, 1, 1, 1]), torch.tensor([9.0, 9, 9, 0])],
    ]
    assert choose_measured_widths(layers, 4) == (1, 3)
    assert sum(choose_measured_widths(layers, 6, 2)) == 6
    assert min(choose_measured_widths(layers, 6, 2)) == 2
    with pytest.raises(ConfigError, match="total = 5 for 2 experts, must be a multiple of 2"):
        choose_measured_widths(layers, 5, 2)
