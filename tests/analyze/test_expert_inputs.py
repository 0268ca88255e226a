import numpy as np
import torch

from hmoe.analyze.expert_inputs import batch_windows, capture_expert_inputs, run_expert
from hmoe.analyze.planted_models import build_planted_model, plant_windows
from tests import oracles


def test_an_expert_equals_the_slow_loops():
    layer = build_planted_model("noise", 0).model.blocks[0].ffn
    x_TD = torch.randn(7, 64)
    for expert in range(5):
        slow = torch.stack([oracles.expert(x_D, layer.expert(expert)) for x_D in x_TD])
        assert torch.allclose(run_expert(layer.expert(expert), x_TD), slow, atol=1e-5)


def test_inputs_are_those_of_whole_windows():
    planted = build_planted_model("noise", 0)
    windows = [*plant_windows(planted, 0, 3), *plant_windows(planted, 1, 2, length=9)]
    captured = capture_expert_inputs(planted.model, windows)
    assert [len(batch) for batch in batch_windows(windows)] == [3, 2]
    seen = {0: [], 1: []}
    chosen = {0: [], 1: []}
    for tokens, _ in windows:  # one window after another, by the blocks' own forward
        x_BLD = planted.model.embed(torch.from_numpy(tokens)[None])
        from hmoe.model.attention import Sequences
        from hmoe.model.rotary import compute_rotary

        config, context = planted.model.config, Sequences()
        positions = context.positions(torch.from_numpy(tokens)[None])
        table = compute_rotary(positions, config.head_width, config.rope_theta, config.rope_scaling, x_BLD)
        for layer, block in enumerate(planted.model.blocks):
            mixed = x_BLD + block.attention(block.attention_norm(x_BLD), table, context)[0]
            normed = block.ffn_norm(mixed)
            y, routing = block.ffn(normed)
            chosen_TE = torch.zeros(len(tokens), 5, dtype=torch.bool)
            chosen_TE[routing.token_N, routing.expert_N] = True
            seen[layer].append(normed[0, 1:])
            chosen[layer].append(chosen_TE[1:])
            x_BLD = mixed + y
    for layer in range(2):
        assert torch.allclose(captured[layer].x_TD, torch.cat(seen[layer]), atol=1e-5)
        assert torch.equal(captured[layer].chosen_TE, torch.cat(chosen[layer]))


def test_a_sample_is_spread_evenly():
    planted = build_planted_model("noise", 0)
    windows = plant_windows(planted, 0, 10)
    whole = capture_expert_inputs(planted.model, windows)
    assert len(whole[0].x_TD) == 310
    done = []
    part = capture_expert_inputs(planted.model, windows, 31, lambda *counts: done.append(counts))
    assert torch.equal(part[1].x_TD, whole[1].x_TD[::10])
    assert torch.equal(part[1].chosen_TE, whole[1].chosen_TE[::10])
    assert done == [(10, 10)]
    assert not planted.model.blocks[0].ffn._forward_pre_hooks


def test_windows_of_one_token():
    planted = build_planted_model("noise", 0)
    captured = capture_expert_inputs(planted.model, [(np.array([3]), np.array([0]))])
    assert captured[0].x_TD.shape == (1, 64)
