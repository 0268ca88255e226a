"""Every preset is planned, built on the meta device (test_count.py), and takes one step shrunk by overrides."""

from pathlib import Path

import pytest

from hmoe.config import recipes
from hmoe.config.plan import make_plan
from tests.train.helpers import run

PAPER = ["dense-0.2b", "dense-1b"] + [
    f"{kind}-{size}-{router}"
    for kind in ("moe", "hmoe")
    for size in ("0.4b", "3b", "16b")
    for router in ("topk", "topp")
]
SMALL = [
    family + sibling for family in ("tiny", "quickstart") for sibling in ("", "-equal", "-dense", "-control")
]

RECTIFY = ["rectify-llama2-7b-8", "rectify-llama2-7b-32"]
OTHERS = [
    "topp",
    "hyper",
    "moepp",
    "deepseek",
    "gshard",
    "switch",
    "top1",
    "rectify",
    "expert-choice",
    "adamoe",
]


def test_the_presets_are_these() -> None:
    assert recipes.list_presets() == sorted(PAPER + SMALL + [f"tiny-{name}" for name in OTHERS] + RECTIFY)


@pytest.mark.parametrize("preset", RECTIFY)
def test_training_settings_of_the_rectify_router_paper(preset: str) -> None:
    """As in the authors' configuration files."""
    config = recipes.read_recipe(preset)[1]
    model, optim, data = config.model, config.optim, config.data
    assert model.moe is not None
    assert (model.moe_layers, model.moe.load_balance) == (tuple(range(1, 32, 2)), 0.01)
    assert set(model.moe.expert_widths) == {model.ffn} == {11008}
    assert len(model.moe.expert_widths) == int(preset.rpartition("-")[2])
    router = model.moe.router
    assert router.name == "top_k"
    assert (router.k, router.capacity_factor, router.rectify, router.when) == (1, 1.0, "fr+ir", "fewer")
    assert (optim.betas, optim.eps, optim.lr, optim.floor, optim.clip) == ((0.9, 0.95), 1e-8, 1e-5, None, 1.0)
    assert (optim.schedule, optim.schedule_steps, optim.warmup_steps) == ("cosine", 10_000, 1000)
    assert (data.sequence_length, data.batch_sequences, config.train.steps) == (2048, 256, 10_000)
    assert make_plan(config)["activated_parameters"] == pytest.approx(6.738e9, rel=1e-3)  # LLaMA-2-7B's own


@pytest.mark.parametrize("preset", PAPER)
def test_training_settings_of_the_paper(preset: str) -> None:
    config = recipes.read_recipe(preset)[1]
    optim, data = config.optim, config.data
    assert (optim.betas, optim.weight_decay, optim.lr, optim.warmup_steps) == ((0.9, 0.999), 1e-5, 1e-4, 1000)
    assert (optim.schedule, optim.decay_all) == ("constant", True)
    assert (data.sequence_length, data.batch_sequences, config.seed) == (4096, 640, 12345)
    assert config.model.vocab == 32_000
    assert not config.model.tied
    if config.model.moe:
        moe = config.model.moe
        unequal, top_p = preset.startswith("hmoe"), preset.endswith("topp")
        assert moe.parameter_penalty == (0.1 if unequal else 0)
        assert moe.load_balance == (0 if unequal else 1e-2)
        assert moe.router_entropy == (3e-2 if top_p else 0)
        assert (moe.router.p if moe.router.name == "top_p" else moe.router.k) == (0.6 if top_p else 2)


@pytest.mark.parametrize("preset", recipes.list_presets())
def test_one_step_shrunk_by_overrides(preset: str, tmp_path: Path) -> None:
    steps = [
        "train.steps=1",
        "train.flops=null",
        "optim.schedule=constant",
        "optim.schedule_steps=null",
        "optim.decay_steps=null",
    ]
    rows = run(tmp_path / "r", "optim.warmup_steps=0", *steps, recipe=preset)
    assert [row["step"] for row in rows] == [1]
    assert rows[0]["loss"] > 0


@pytest.mark.parametrize("family", ["tiny", "quickstart"])
def test_siblings_compare_at_equal_flops(family: str) -> None:
    """Equal: same total width. Dense: the width activated under uniform routing. Control: the width measured."""
    own, equal, dense, control = (
        recipes.read_recipe(family + s)[1] for s in ("", "-equal", "-dense", "-control")
    )
    moes = [c.model.moe for c in (own, equal, control)]
    assert all(m is not None for m in moes)
    widths = [m.expert_widths for m in moes if m is not None]
    assert sum(widths[0]) == sum(widths[1])
    assert len(set(widths[1])) == len(set(widths[2])) == 1
    assert len(set(widths[0])) == 8
    assert dense.model.ffn == 2 * sum(widths[0]) // 8
    assert 2 * widths[2][0] < dense.model.ffn
    flops = [make_plan(c)["flops_per_token"] for c in (own, equal, dense)]
    assert max(flops) / min(flops) < 1.01
    assert {c.train.steps for c in (own, equal, dense, control)} == {own.train.steps}
