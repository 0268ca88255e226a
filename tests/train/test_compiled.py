"""Blocks under torch.compile, mostly by a backend that traces and makes no code."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hmoe import ConfigError
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.data.batches import cut_batch
from hmoe.model.transformer import build_transformer, set_check_finite
from hmoe.runs.probe_history import read_probe
from hmoe.train.compiled import compile_blocks, explain_failure
from hmoe.train.optimizer import build_optimizer
from hmoe.train.step import train_step
from tests.conftest import tiny
from tests.train.helpers import run


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    from torch._dynamo.utils import counters

    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def load(recipe: str, *overrides: str) -> RunConfig:
    return recipes.read_recipe(recipe, [*tiny(recipe), "train.activation_checkpointing=false", *overrides])[1]


def losses(config: RunConfig, backend: str | None) -> list[float]:
    """Of two steps."""
    model = build_transformer(config.model, 0)
    set_check_finite(model, False)
    model.activation_checkpointing = config.train.recomputes_blocks
    if backend:
        compile_blocks(model, backend)
    optimizer, rng = build_optimizer(model, config.optim), np.random.default_rng(0)
    batches = [rng.integers(0, 300, (2, 4, 32)) for _ in range(2)]
    return [
        train_step(model, optimizer, cut_batch(*batch, config.data.num_micro_batches), config, i).terms[
            "loss_total"
        ]
        for i, batch in enumerate(batches)
    ]


MIXED = ["model.moe.dense_layers=[1]", "model.ffn=48", "train.activation_checkpointing=true"]


def test_compiled_blocks_give_the_loss_of_eager_ones_by_one_graph_of_each_kind() -> None:
    """Top-p with a dense layer and activation checkpointing; top-k without them: next test."""
    config = load("tiny-topp", "seed=12345", *MIXED)
    eager = losses(config, None)
    assert num_graphs() == 0
    assert losses(config, "aot_eager") == pytest.approx(eager, rel=1e-5)
    assert num_graphs() == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("recipe", ["tiny", "tiny-topp", "tiny-rectify", "tiny-deepseek", "tiny-moepp"])
def test_code_that_the_compiler_makes_gives_the_loss_of_eager_blocks(recipe: str) -> None:
    config = load(recipe)
    assert losses(config, "inductor") == pytest.approx(losses(config, None), rel=1e-5)


def test_a_compiled_run_validates_and_samples_without_another_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last part of the validation is smaller, and a sample grows token by token."""
    monkeypatch.setattr(
        "hmoe.train.run_model.compile_blocks", lambda model: compile_blocks(model, "aot_eager")
    )
    short = ["train.steps=2", "train.eval_every=1", "train.eval_sequences=5", "train.sample_every=1"]
    short += ["train.inspect_every=1"]
    eager = run(tmp_path / "eager", *short)
    table = run(tmp_path / "compiled", *short, "train.compile=true")
    assert num_graphs() == 1
    assert read_probe(tmp_path / "compiled", 1)["chosen"] == read_probe(tmp_path / "eager", 1)["chosen"]
    for name in ("loss", "validation_loss"):
        assert [row[name] for row in table] == pytest.approx([row[name] for row in eager], rel=1e-5)
    with pytest.raises(
        ConfigError, match=r"train\.compile: differs .*: false in the recipe, true in the checkpoint"
    ):
        run(tmp_path / "compiled", *short, "train.steps=3")


def test_what_would_be_compiled_anew_each_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="a router that draws random numbers would be compiled anew"):
        load("tiny", "train.compile=true", "model.moe.router={name: top_k, k: 2, jitter: 0.5}")
    with pytest.raises(ConfigError, match=r"HyperExperts \(model\.moe\.hyper\) would be compiled anew"):
        load("tiny-hyper", "train.compile=true")


def test_a_compiler_that_fails_is_one_line() -> None:
    from torch._dynamo.exc import Unsupported

    config = load("tiny", "train.compile=true")
    with (
        pytest.raises(
            ConfigError, match=r"^train\.compile = true: a block cannot be compiled here \(no compiler"
        ),
        explain_failure(config),
    ):
        raise Unsupported("no compiler\nfound")
    with pytest.raises(KeyError), explain_failure(config):
        raise KeyError("x")
