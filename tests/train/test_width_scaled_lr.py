"""A learning rate by the expert's width, against AdamW number by number."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import hmoe
from hmoe.config import recipes
from hmoe.config.run import OptimConfig
from hmoe.train.optimizer import build_optimizer
from tests import oracles
from tests.conftest import tiny
from tests.train.helpers import digests, run
from tests.train.test_step import setup, take_step

WIDTHS = (1, 3, 8)
SETTINGS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3}
RULE = "optim.width_scaled_lr=true"


def layer(widths: tuple[int, ...] = WIDTHS) -> hmoe.MoE:
    return hmoe.MoE(4, widths, hmoe.TopK(2), dtype=torch.float64)


def test_each_expert_has_the_adamw_of_its_own_learning_rate() -> None:
    moe = layer()
    optimizer = build_optimizer(moe, OptimConfig.model_validate({**SETTINGS, "width_scaled_lr": True}))
    begin = [[matrix.clone() for matrix in moe.expert(i)] for i in range(3)]
    gradients: list[list[list[torch.Tensor]]] = [[[], [], []] for _ in range(3)]
    for step in range(4):
        # The last step's tokens are one alone, so that an expert has no token and a gradient of 0.
        x_TD = torch.randn(9 if step < 3 else 1, 4, dtype=torch.float64)
        moe(x_TD)[0].square().sum().backward()
        for i in range(3):
            for kept, gradient in zip(gradients[i], moe.expert_grad(i), strict=True):
                kept.append(gradient.clone())
        optimizer.step()
        optimizer.zero_grad()
    rest = (SETTINGS["betas"], SETTINGS["eps"], SETTINGS["weight_decay"])
    for i, width in enumerate(WIDTHS):
        for part, (weight, matrix) in enumerate(zip(begin[i], moe.expert(i), strict=True)):
            scale = 4 / width if part == 2 else 1.0
            expected = oracles.adamw(weight, gradients[i][part], scale * 0.05, *rest)  # type: ignore[arg-type]
            torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-12)


def test_equal_experts_and_other_weights_move_as_without_it() -> None:
    models = []
    for rules in ((), (RULE,)):
        config, model, optimizer, batch = setup(*rules)
        for step in range(2):
            take_step(model, optimizer, batch, config, step)
        models.append(dict(model.named_parameters()))
    first = {name: torch.equal(*(m[name] for m in models)) for name in models[0]}
    assert not any(equal for name, equal in first.items() if name.endswith("ffn.w_down"))
    pair = []
    for scaled in (False, True):
        torch.manual_seed(0)
        moe = layer((5, 5, 5))
        optimizer = build_optimizer(moe, OptimConfig.model_validate({**SETTINGS, "width_scaled_lr": scaled}))
        torch.manual_seed(1)
        moe(torch.randn(9, 4, dtype=torch.float64))[0].square().sum().backward()
        optimizer.step()
        pair.append(moe.w_down)
    assert torch.equal(*pair)


@pytest.mark.parametrize(
    ("widths", "shape", "rows"),
    [
        pytest.param((1, 3), (1, 1), [(0, 4)], id="one rank"),
        pytest.param((1, 2, 4), (1, 2), [(0, 4), (4, 7)], id="a shorter shard"),
        pytest.param((1, 3), (1, 3), [(0, 2), (2, 4), (4, 4)], id="an empty shard"),
        pytest.param((2, 3), (2, 2), [(0, 3), (3, 5), (0, 3), (3, 5)], id="two copies of two shards"),
    ],
)
def test_each_rank_moves_its_rows_as_one_process_does(
    widths: tuple[int, ...], shape: tuple[int, int], rows: list[tuple[int, int]]
) -> None:
    """On ranks that never meet, one after the other: an optimizer's step needs no word between them."""
    settings = OptimConfig.model_validate({**SETTINGS, "width_scaled_lr": True})
    plain = layer(widths)
    begin = copy.deepcopy(plain.state_dict())
    gradients = [torch.randn_like(parameter) for parameter in plain.parameters()]
    step_by(plain, settings, gradients)
    for rank, (first, end) in enumerate(rows):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=len(rows))
        try:
            # Named by rank: torch keeps things by mesh, and equal meshes of two ranks are never in one process.
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=(f"copies_{rank}", f"shards_{rank}"))
            sharded = layer(widths)
            sharded.load_state_dict(begin)
            fully_shard(sharded, mesh=mesh)
            placements = (Replicate(), Shard(0))
            parts = [
                distribute_tensor(gradient, mesh, placements, src_data_rank=None) for gradient in gradients
            ]
            step_by(sharded, settings, parts)
            assert isinstance(sharded.w_down, DTensor)
            assert sharded.w_down.placements == placements
            assert torch.equal(sharded.w_down.to_local(), plain.w_down[first:end])
        finally:
            dist.destroy_process_group()


def step_by(moe: hmoe.MoE, settings: OptimConfig, gradients: Sequence[torch.Tensor]) -> None:
    """Make an optimizer and take two steps of it, each by these gradients."""
    optimizer = build_optimizer(moe, settings)
    for parameter, gradient in zip(moe.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.step()


def test_initial_weights_follow_the_expert_s_width() -> None:
    moe = hmoe.MoE(64, (16, 64, 256), hmoe.TopK(2))
    for i, width in enumerate(moe.widths):
        assert moe.expert(i)[2].std().item() == pytest.approx(width**-0.5, rel=0.1)


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    run(tmp_path / "one", RULE)
    run(tmp_path / "two", RULE, "train.steps=3")
    run(tmp_path / "two", RULE)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_recipes_hold_it_where_it_is_set_and_dense_models_refuse_it() -> None:
    plain, ruled = (recipes.read_recipe("tiny", [*tiny("tiny"), *rules])[1] for rules in ((), (RULE,)))
    assert "width_scaled_lr" not in plain.model_dump(mode="json")["optim"]
    tree = ruled.model_dump(mode="json")
    assert tree["optim"]["width_scaled_lr"] is True
    assert recipes.check_recipe(tree) == ruled
    with pytest.raises(hmoe.ConfigError, match=r"optim\.width_scaled_lr has no effect without experts"):
        recipes.read_recipe("tiny-dense", [*tiny("tiny-dense"), RULE])
