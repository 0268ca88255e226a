import numpy as np
import pytest
import torch

import hmoe
from hmoe.analyze.planted_models import MODEL_STRUCTURES, build_planted_model, plant_windows
from hmoe.errors import ConfigError


def _trace(planted, seed=0):
    tokens = np.stack([tokens for tokens, _ in plant_windows(planted, seed)])
    return hmoe.trace(planted.model, torch.from_numpy(tokens))


def test_twins_have_the_same_outputs_by_other_weights():
    planted = build_planted_model("twins", 0)
    layer = planted.model.blocks[1].ffn
    first, second = (layer.expert(i) for i in planted.truth["experts"])
    assert not torch.equal(first[0], second[0])
    x = torch.randn(5, 64)

    def run(weights):
        w_gate, w_up, w_down = weights
        return (torch.nn.functional.silu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T

    assert torch.allclose(run(first), run(second), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_dead_one_serves_nothing(seed):
    planted = build_planted_model("dead", seed)
    counts_ZE = _trace(planted).num_tokens_ZE
    assert counts_ZE[planted.truth["layer"], planted.truth["expert"]] == 0
    assert (counts_ZE == 0).sum() == 1


@pytest.mark.parametrize("seed", range(3))
def test_an_expert_fires_on_some_ids_always_and_only(seed):
    planted = build_planted_model("tokens", seed)
    trace = _trace(planted)
    is_own_T = torch.isin(trace.tokens_T, torch.tensor(planted.truth["tokens"]))
    assert 50 < is_own_T.sum() < 200
    assert torch.equal(trace.chosen_ZTE[planted.truth["layer"], :, planted.truth["expert"]], is_own_T)


def test_a_memory_predicts_its_texts():
    memory, noise = build_planted_model("memory", 0), build_planted_model("noise", 0)
    tokens = torch.from_numpy(np.stack([tokens for tokens, _ in plant_windows(memory, 1)]))
    assert (
        hmoe.trace(memory.model, tokens).nll_T.nanmean()
        < hmoe.trace(noise.model, tokens).nll_T.nanmean() - 0.5
    )


def test_seeds_structures_and_other_sections():
    for structure in MODEL_STRUCTURES:
        first, again, other = (build_planted_model(structure, seed) for seed in (1, 1, 2))
        weights = first.model.state_dict()
        assert all(torch.equal(weights[name], w) for name, w in again.model.state_dict().items())
        assert not all(torch.equal(weights[name], w) for name, w in other.model.state_dict().items())
        assert first.truth == again.truth
    wide = build_planted_model("noise", 0, {"widths": [8, 8], "router": {"name": "top_p", "p": 0.5}})
    assert wide.model.config.moe.expert_widths == (8, 8)
    with pytest.raises(ConfigError, match="'twin', must be one of noise, twins"):
        build_planted_model("twin", 0)
    with pytest.raises(ConfigError, match="twins need two of the same width"):
        build_planted_model("twins", 0, {"widths": [8, 16]})
    with pytest.raises(ConfigError, match="at least 48 hidden units"):
        build_planted_model("memory", 0, {"widths": [8, 16]})
