"""What was caught before MoE layers against a decoder that is followed by hand, block by block."""

from typing import Any

import numpy as np
import pytest
import torch

from hmoe.analyze import expert_inputs
from hmoe.analyze.expert_inputs import batch_windows, capture_expert_inputs, run_expert
from hmoe.model.attention import Sequences
from hmoe.model.rotary import compute_rotary
from tests.analyze.helpers import build_small_model

MODELS: dict[str, dict[str, Any]] = {
    "top-p": {},
    "top-k, raw": {"router": {"name": "top_k", "k": 2, "renormalize": False}},
    "expert choice": {"router": {"name": "expert_choice"}},
    "zero experts": {"zero": {"null": 1, "copy": 1, "constant": 1}},
    "shared and generated": {"router": {"name": "top_k", "k": 2}, "shared": 3, "hyper": {"dim": 2}},
}


def draw_windows(*lengths: int) -> list[Any]:
    draw = np.random.default_rng(0)
    return [(draw.integers(257, size=length), np.full(length, place)) for place, length in enumerate(lengths)]


@torch.no_grad()
def follow_decoder(model: Any, windows: Any) -> list[tuple[torch.Tensor, Any]]:
    """What each MoE layer reads from windows of one length, and its routing, without hooks."""
    tokens_BL = torch.from_numpy(np.stack([tokens for tokens, _ in windows]))
    x_BLD, context, layers = model.embed(tokens_BL), Sequences(), []
    config = model.config
    rotary = compute_rotary(
        context.positions(tokens_BL), config.head_width, config.rope_theta, config.rope_scaling, x_BLD
    )
    for block in model.blocks:
        x_BLD = x_BLD + block.attention(block.attention_norm(x_BLD), rotary, context)[0]
        normed_BLD = block.ffn_norm(x_BLD)
        if block.sparse:
            y_BLD, routing = block.ffn(normed_BLD, hyper_network=model.hyper_network)
            layers.append((normed_BLD.flatten(0, 1), routing))
        else:
            y_BLD = block.ffn(normed_BLD)
        x_BLD = x_BLD + y_BLD
    return layers


def mark_chosen(routing: Any) -> torch.Tensor:
    chosen_TE = torch.zeros_like(routing.probs_TE, dtype=torch.bool)
    chosen_TE[routing.token_N, routing.expert_N] = True
    return chosen_TE


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_what_the_layers_read(name: str) -> None:
    model, windows = build_small_model(**MODELS[name]), draw_windows(9, 9, 5, 1)
    captured = capture_expert_inputs(model, windows)
    followed = [follow_decoder(model, part) for part in (windows[:2], windows[2:3], windows[3:])]
    ordinary = torch.tensor([place for place in range(24) if place not in (0, 9, 18, 23)])
    assert len(captured) == 2
    for layer, inputs in enumerate(captured):
        x_TD = torch.cat([part[layer][0] for part in followed])
        torch.testing.assert_close(inputs.x_TD, x_TD[ordinary], rtol=1e-5, atol=1e-5)
        chosen_TE = torch.cat([mark_chosen(part[layer][1]) for part in followed])
        assert torch.equal(inputs.chosen_TE, chosen_TE[ordinary])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["top-p", "top-k, raw", "expert choice"])
def test_outputs_of_chosen_experts_make_the_layer(name: str) -> None:
    model, windows = build_small_model(**MODELS[name]), draw_windows(12)
    for number, (x_TD, routing) in zip((0, 2), follow_decoder(model, windows), strict=True):
        layer: Any = model.blocks[number].ffn
        gate_TE = torch.zeros_like(routing.probs_TE)
        gate_TE[routing.token_N, routing.expert_N] = routing.gate_N.detach()
        outputs = [run_expert(layer.expert(i), x_TD) for i in range(4)]
        summed = sum(gate_TE[:, i, None] * output for i, output in enumerate(outputs))
        torch.testing.assert_close(summed, layer(x_TD)[0].detach(), rtol=1e-5, atol=1e-5)


def test_of_many_tokens_some_are_kept_evenly_spread() -> None:
    model, windows = build_small_model(), draw_windows(8, 8, 6)
    every, some = (capture_expert_inputs(model, windows, most) for most in (4096, 5))
    for layer in range(2):
        kept = [0, 3, 7, 11, 15]  # of 19
        torch.testing.assert_close(some[layer].x_TD, every[layer].x_TD[kept])
        assert torch.equal(some[layer].chosen_TE, every[layer].chosen_TE[kept])


def test_windows_of_one_token_are_read_if_there_are_no_others() -> None:
    captured = capture_expert_inputs(build_small_model(), draw_windows(1, 1, 1))
    assert [len(inputs.x_TD) for inputs in captured] == [3, 3]


def test_batches_are_neighbours_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_inputs, "PASS_TOKENS", 10)
    windows = draw_windows(4, 4, 4, 3, 20, 4)
    batches = [[len(tokens) for tokens, _ in batch] for batch in batch_windows(windows)]
    assert batches == [[4, 4], [4], [3], [20], [4]]
    assert [window for batch in batch_windows(windows) for window in batch] == windows
    steps: list[tuple[int, int]] = []
    capture_expert_inputs(
        build_small_model(), windows, report=lambda done, total: steps.append((done, total))
    )
    assert steps == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_hooks_are_gone_after_an_error() -> None:
    model = build_small_model()
    with pytest.raises(ValueError, match="ids must be"):
        capture_expert_inputs(model, [(np.array([1, 999]), np.zeros(2, np.int64))])
    assert not any(module._forward_pre_hooks for module in model.modules())
