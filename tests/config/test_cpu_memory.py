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
        ("tiny", [*WIDE, "data.micro_batches=2"]),  # most at the last block
        ("tiny", [*WIDE, "data.micro_batches=1", "data.batch_tokens=512"]),  # at the first block
        ("tiny", [*WIDE, "model.vocab=20000", "data.micro_batches=1"]),  # at the loss
        ("tiny", [*WIDE, "parallel.exact=true", "data.micro_batches=4"]),  # at the update
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
    words = ["bench", "step", "tiny", *DATA, *WIDE, "data.micro_batches=4", "parallel.shard=zero3"]
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


def test_by_hand_with_one_block_one_expert_and_one_micro_batch() -> None:
    """float32; dim 64, one head, an expert of 96 units, 16 tokens, vocabulary 257; the largest moment: the update."""
    sizes = ["model.dim=64", "model.layers=1", "model.heads=1", "model.vocab=257", "model.moe.widths=[96]"]
    batch = ["data.batch_tokens=16", "data.sequence_length=16", "data.micro_batches=1"]
    config = load("tiny", *sizes, *batch, "model.moe.router={k: 1}")
    parts = estimate_memory_by_part(config, "cpu")
    weights = 2 * 257 * 64 + 4 * 64 * 64 + 3 * 64 + 64 + 3 * 64 * 96
    assert parts["parameters"] == parts["gradients"] == 4 * weights
    assert parts["optimizer"] == 8 * weights
    # Of 16 tokens: inputs of two norms and what they give; queries, keys, values, all three again as one, the output;
    # pre-activations; gradients of the stream, of the pair, and of hidden units.
    kept = 2 * 64 + 64 + 6 * 64 + 64 + 2 * 96 + 2.5 + 11
    passing = 3 * 64 + 64 + 2 * 64 + 3 * 96
    assert parts["activations"] == round(16 * 4 * (kept + passing))
    assert parts["copies"] == 4 * (3 * 64 * 64 + 16 * 2 * 64)
    assert parts["loss"] == 0
