"""Planted structure is in the models, whatever else they have, and only there."""

from typing import Any

import numpy as np
import pytest
import torch

from hmoe import ConfigError
from hmoe.analyze.expert_inputs import run_expert
from hmoe.analyze.planted_models import (
    MODEL_STRUCTURES,
    PLANTED_WIDTHS,
    PlantedModel,
    build_planted_model,
    plant_windows,
)
from hmoe.model.trace import RoutingTrace, trace

MODELS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "top-p": {"router": {"name": "top_p", "p": 0.6}},
    "raw": {"router": {"name": "top_k", "k": 1, "renormalize": False}},
    "zero experts": {"zero": {"null": 1, "copy": 2, "constant": 1}},
    "shared": {"shared": 8},
    "generated": {"hyper": {"dim": 4}},
}


def read_texts(planted: PlantedModel) -> RoutingTrace:
    return trace(
        planted.model, torch.from_numpy(np.stack([tokens for tokens, _ in plant_windows(planted, 0)]))
    )


@pytest.mark.parametrize("moe", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_dead_expert_is_never_chosen(moe: str, seed: int) -> None:
    planted = build_planted_model("dead", seed, MODELS[moe])
    num_tokens_ZE = read_texts(planted).num_tokens_ZE
    assert num_tokens_ZE[1, planted.truth["expert"]] == 0
    assert int((num_tokens_ZE == 0).sum()) == 1


@pytest.mark.parametrize("moe", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_an_expert_for_some_tokens_serves_them_and_no_others(moe: str, seed: int) -> None:
    planted = build_planted_model("tokens", seed, MODELS[moe])
    traced = read_texts(planted)
    ids = torch.tensor(planted.truth["tokens"])
    assert len(ids) == 8
    is_served_T = traced.chosen_ZTE[1, :, planted.truth["expert"]]
    assert torch.equal(is_served_T, torch.isin(traced.tokens_T, ids))


@pytest.mark.parametrize("seed", range(5))
def test_twins_differ_in_the_order_of_units_alone(seed: int) -> None:
    planted = build_planted_model("twins", seed)
    layer: Any = planted.model.blocks[1].ffn
    first, second = planted.truth["experts"]
    assert layer.widths[first] == layer.widths[second]
    assert not torch.equal(layer.expert(first)[0], layer.expert(second)[0])
    x_TD = torch.randn(30, 64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(run_expert(layer.expert(first), x_TD), run_expert(layer.expert(second), x_TD))


@pytest.mark.parametrize("moe", MODELS)
def test_a_memory_serves_all_and_knows_what_follows(moe: str) -> None:
    planted = build_planted_model("memory", 1, MODELS[moe])
    traced, expert = read_texts(planted), planted.truth["expert"]
    assert traced.num_tokens_ZE[1, expert] == len(traced.tokens_T)
    without = trace(planted.model, traced.tokens_T.view(20, 32), without={1: [expert]})
    assert without.nll_T.nanmean() > traced.nll_T.nanmean() + 0.15
    tokens_BL = traced.tokens_T.view(20, 32)
    successors = torch.tensor(planted.truth["successors"])
    share = (successors[tokens_BL[:, :-1]] == tokens_BL[:, 1:]).double().mean()
    assert 0.75 < share < 0.86


@pytest.mark.parametrize("structure", MODEL_STRUCTURES)
def test_all_is_a_function_of_the_seed_and_windows_are_documents(structure: str) -> None:
    first, again, other = (build_planted_model(structure, seed) for seed in (3, 3, 4))
    assert first.truth == again.truth
    weights, same, different = (dict(planted.model.named_parameters()) for planted in (first, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(weights["embed.weight"], different["embed.weight"])
    windows = plant_windows(first, 2, num_documents=4, length=9)
    assert [set(documents.tolist()) for _, documents in windows] == [{0}, {1}, {2}, {3}]
    assert all(len(tokens) == 9 and 0 <= tokens.min() <= tokens.max() < 48 for tokens, _ in windows)


@pytest.mark.parametrize(
    ("structure", "moe", "fault"),
    [
        ("twin", {}, "structure = 'twin', must be one of noise, twins"),
        ("twins", {"widths": [3, 4]}, "two of the same width"),
        ("memory", {"widths": [3, 4]}, "at least 48 hidden units"),
        ("dead", {"router": {"name": "expert_choice"}}, "needs top_k or top_p"),
        ("tokens", {"router": {"name": "top_p", "p": 1.0}}, "p = 1"),
        ("noise", {"dense_layers": [0]}, "dense layers need"),
    ],
)
def test_what_cannot_be_planted_is_refused(structure: str, moe: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        build_planted_model(structure, 0, moe)
    assert len(set(PLANTED_WIDTHS)) < len(PLANTED_WIDTHS)
