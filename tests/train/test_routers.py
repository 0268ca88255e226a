"""Training with every kind of router and addition: it learns, logs, resumes to the same bytes, and can be evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe.cli.main import run_command_line as hmoe
from hmoe.config import recipes
from hmoe.runs.open_model import open_model
from tests.train.helpers import run as train_run

KINDS: dict[str, list[str]] = {
    "rectified": ["router={name: top_k, k: 1, capacity_factor: 1.0, rectify: fr+ir, when: fewer}"],
    "by width": [
        "router={name: top_k, k: 2, capacity_factor: 1.0, eval_capacity_factor: 2.0, capacity_by: width}"
    ],
    "expert choice": ["router={name: expert_choice, capacity_factor: 2.0}"],
    "bias": [
        "router={name: top_k, k: 2, scores: sigmoid, bias_rate: 0.01, bias_by: compute}",
        "parameter_penalty=0",
    ],
    "noise": ["router={name: top_k, k: 2, jitter: 0.01, gumbel: true}"],
    "zero": ["zero={null: 1, copy: 1, constant: 2, balance: 0.75}", "load_balance=0.01"],
    "shared": ["shared=16"],
    "hyper": ["hyper={dim: 8}"],
}


def options(kind: str) -> list[str]:
    overrides = [f"model.moe.{option}" for option in KINDS[kind]]
    return [*overrides, "train.sample_every=0"] if kind == "expert choice" else overrides


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_trains_resumes_to_the_same_bytes_and_evaluates(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(tmp_path / "whole", *options(kind))
    whole = rows(tmp_path / "whole")
    assert whole[-1]["loss"] < whole[0]["loss"]
    last = whole[-1]["step"]
    train_run(tmp_path / "parts", *options(kind), f"train.steps={last // 2}")
    train_run(tmp_path / "parts", *options(kind))
    name = f"checkpoints/step-{last:08d}/model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    if kind in ("rectified", "by width"):
        slots = whole[-1]["slots"]
        assert set(slots) == {"dropped", "filled", "rectified", "padded"}
        assert sum(slots["dropped"]) > 0
        assert (sum(slots["rectified"]) > 0) == (kind == "rectified")
    else:
        assert "slots" not in whole[-1]
    output = capsys.readouterr().out
    assert ("slots of MoE layer 1: " in output) == (kind in ("rectified", "by width"))
    assert hmoe(["generate", str(tmp_path / "whole"), "It was", "--max-tokens", "3"]) == (
        2 if kind == "expert choice" else 0
    )
    opened = open_model(tmp_path / "whole", lambda text: None)
    assert not opened.model.training


def test_expert_choice_and_samples_exclude_each_other() -> None:
    with pytest.raises(Exception, match=r"train\.sample_every = 100: .* nearest is 0"):
        recipes.read_recipe("tiny", ["model.moe.router={name: expert_choice}"])
