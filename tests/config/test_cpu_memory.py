"""What a CPU's step is planned to need, against the tensors that it has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmoe.bench.peak_memory import measure_peak_memory
from hmoe.bench.training import Training
from hmoe.config import recipes
from hmoe.config.cpu_memory import describe_largest_moment
from hmoe.config.memory import Device, choose_unset, count_memory, estimate_memory_by_part
from hmoe.config.run import RunConfig

DATA = ["data.path=corpus", "data.tokenizer=bytes", "train.activation_checkpointing=false"]
SIZES = [
    "model.dim=256",
    "model.layers=3",
    "model.heads=4",
    "data.batch_tokens=2048",
    "data.sequence_length=128",
]
WIDE = [*SIZES, "model.moe.widths.total=2048"]


def load(recipe: str, *overrides: str) -> RunConfig:
    config = recipes.read_recipe(recipe, [*DATA, *overrides])[1]
    return choose_unset(config, Device("cpu", 10**12))


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("tiny", [*WIDE, "data.micro_batches=2"]),
        ("tiny", [*WIDE, "data.micro_batches=1", "data.batch_tokens=512"]),
        ("tiny", [*WIDE, "data.micro_batches=1", "data.batch_tokens=256", "model.layers=1"]),
        ("tiny-dense", [*SIZES, "model.dim=512", "model.ffn=256", "model.vocab=20000", "data.batch_tokens=128",
                        "data.micro_batches=1"]),
        ("tiny-dense", [*SIZES, "model.ffn=512", "model.vocab=20000", "data.micro_batches=2", "model.tied=true",
                        "train.activation_checkpointing=true"]),
        ("tiny", [*WIDE, "parallel.exact=true", "data.micro_batches=9", "data.batch_tokens=1152"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "train.precision=bfloat16"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "model.moe.hyper={dim: 8}"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "model.moe.router={k: 2, capacity_factor: 0.5}"]),
        ("tiny", [*SIZES, "model.layers=2", "model.heads=16", "model.head_dim=64", "model.moe.widths.total=256",
                  "data.micro_batches=1"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "model.kv_heads=1", "model.qk_norm=head"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "train.activation_checkpointing=true", "model.layers=6"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "model.moe.router={name: top_p, p: 0.5}"]),
        ("tiny", [*WIDE, "data.micro_batches=2", "model.moe.dense_layers=[0]", "model.ffn=700", "model.moe.shared=64"]),
        ("tiny-dense", [*SIZES, "model.ffn=768", "data.micro_batches=2", "model.kv_heads=2"]),
    ],
)  # fmt: skip
def test_the_estimate_is_what_a_step_has(recipe: str, overrides: list[str]) -> None:
    config = load(recipe, *overrides)
    training = Training(config, "cpu")
    training()
    assert count_memory(config, "cpu") == pytest.approx(measure_peak_memory(training), rel=0.05)


def test_by_two_processes_too(tmp_path: Path) -> None:
    words = ["bench", "step", "tiny", *DATA, *WIDE, "data.micro_batches=4", "parallel.shard=zero2"]
    options = ["--alone", "--processes", "2", "--rounds", "3", "--out", str(tmp_path)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "hmoe", *words, *options],
        capture_output=True,
        text=True,
        check=False,
        env=variables,
    )
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.iterdir()
    row = json.loads(file.read_text())["rows"][0]
    assert row["planned_memory_bytes"] == pytest.approx(row["peak_memory_bytes"], rel=0.05)
    assert "tiny float32: tensors of " in result.stdout


def test_by_hand_with_one_dense_block_at_the_loss() -> None:
    """float32; dim 64, one head, ffn 96, vocabulary 5,000, two micro-batches of 16 tokens."""
    sizes = ["model.dim=64", "model.layers=1", "model.heads=1", "model.vocab=5000", "model.ffn=96"]
    config = load(
        "tiny-dense", *sizes, "data.batch_tokens=32", "data.sequence_length=16", "data.micro_batches=2"
    )
    assert describe_largest_moment(config, 1) == "at the loss"
    parts = estimate_memory_by_part(config, "cpu")
    weights = 2 * 5000 * 64 + 4 * 64 * 64 + 3 * 64 + 3 * 64 * 96
    assert parts["parameters"] == parts["gradients"] == 4 * weights
    assert parts["optimizer"] == 8 * weights
    # Of 16 tokens: inputs of two norms and what they give; queries, keys, values, the first two again, and what
    # comes of them; both products of the feed-forward layer, one after its function, and the product of the two.
    assert parts["activations"] == 4 * 16 * (2 * 64 + 2 * 64 + 6 * 64 + 4 * 96)
    assert parts["copies"] == 4 * (3 * 64 * 64 + 16 * 2 * 64)
    # Logits of all 16 tokens, gradients of the head and what is added to them, what the head read and its gradient.
    assert parts["loss"] == 4 * (16 * 5000 + 2 * 5000 * 64 + 2 * 16 * 64)
