"""`hmoe bench step` compares a recipe with its siblings, and splits a step into its parts; no time is asserted."""

import json
from pathlib import Path

import pytest

from hmoe.bench import measure, step
from hmoe.cli.main import run_command_line


def test_step_compares_siblings_and_says_where_the_time_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["bench", "step", "tiny", "--rounds", "3", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("step-tiny-*.json")
    *rows, parts = json.loads(path.read_text())["rows"]
    assert [row["preset"] for row in rows] == ["tiny", "tiny-equal", "tiny-dense"]
    shares = parts["shares_of_a_step"]
    assert {"attention", "experts", "router", "head and loss", "optimiser", "what is left"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_papers_preset_is_measured_on_the_corpus_with_its_siblings() -> None:
    overrides = ["data.path=corpus", "data.tokenizer=bytes", "data.sequence_length=64", "data.batch_tokens=128",
                 "data.micro_batches=1"]  # fmt: skip
    name, config = step.load_recipe("hmoe-0.4b-topk", overrides, None, "cuda")
    assert (name, config.data.batch_tokens, config.train.precision) == ("hmoe-0.4b-topk", 128, "bfloat16")
    siblings = {"equal": "moe-0.4b-topk", "dense": "dense-0.2b"}
    assert step._comparable(name, overrides, measure.BenchOptions()) == siblings == step.find_siblings(name)
    assert step.find_siblings("tiny") == {"equal": "tiny-equal", "dense": "tiny-dense"}
    assert step.find_siblings("hmoe-16b-topk") == {"equal": "moe-16b-topk"}
    assert step.find_siblings("my.yaml") == step.find_siblings("dense-1b") == {}


def test_other_experts_are_measured_alone() -> None:
    lines: list[str] = []
    assert step._comparable("tiny", ["model.moe.router.k=1"], measure.BenchOptions(say=lines.append)) == {}
    assert lines == [
        "alone: an override changes the experts, so tiny-equal and tiny-dense would not be comparable"
    ]
