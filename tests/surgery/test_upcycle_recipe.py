"""`hmoe upcycle` over run folders and Hugging Face folders, and training from there."""

import json
import re
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line as hmoe
from hmoe.runs.open_model import open_model
from tests.conftest import sentences
from tests.runs.test_families import MODELS, write
from tests.train.helpers import run as train_run

TEXT = ["--tokens", "600"]


@pytest.fixture
def some_text(tmp_path: Path) -> list[str]:
    """A file of 6,000 bytes in place of the run's own text, of which 65,536 tokens would be read."""
    (tmp_path / "some.txt").write_text(sentences(0, 130)[:6000])
    return [*TEXT, "--text", str(tmp_path / "some.txt")]


def losses(out: str) -> tuple[float, float]:
    match = re.search(r"loss on the text: ([\d.]+) nats per token before, ([\d.]+) after", out)
    assert match is not None
    return float(match[1]), float(match[2])


def test_a_dense_run_becomes_experts_and_trains_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoe.cli.upcycle._LARGEST_LOSS_TOKENS", 4000)  # of the run's own text
    dense, there = tmp_path / "dense", tmp_path / "experts"
    train_run(dense, recipe="tiny-dense")
    few = ["train.steps=3", "train.sample_every=0", "optim.warmup_steps=0"]
    words = ["upcycle", str(dense), str(there), "--recipe", "tiny", *TEXT]
    assert hmoe([*words, "model.moe.widths=[48, 48, 64]", *few]) == 0
    before, after = losses(capsys.readouterr().out)
    assert after == pytest.approx(
        before, abs=1e-4
    )  # 48 units in the dense layer: every expert holds all of them
    opened = open_model(there, lambda text: None)
    assert opened.step == 0
    assert opened.model.config.moe is not None
    assert opened.model.config.moe.expert_widths == (48, 48, 64)
    assert hmoe(["train", f"{there}/config.yaml", "--run", str(there)]) == 0
    rows = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss"] < 1.05 * before  # it goes on from where the dense model was


def test_a_llama_folder_becomes_experts_in_every_second_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "llama", MODELS["llama"]())
    text = tmp_path / "text.txt"
    text.write_text(sentences(0, 60))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: tiny-rectify\nmodel: {moe: {widths: [48, 48, 48, 48], dense_layers: [0]}}\n"
        "data: {path: nowhere, sequence_length: 32, batch_tokens: 128}\n"
    )
    words = ["upcycle", str(tmp_path / "llama"), str(tmp_path / "run"), "--recipe", str(recipe)]
    assert hmoe([*words, "--text", str(text), *TEXT]) == 0
    out = capsys.readouterr().out
    assert "capacity 1, fr+ir" in out
    before, after = losses(out)
    assert after == pytest.approx(before, abs=1e-3)  # rectified: even dropped tokens meet a copy
    assert hmoe([*words[:2], str(tmp_path / "other"), *words[3:], "--choice", "windows"]) == 0
    assert "no text: neither losses nor errors were measured" in capsys.readouterr().out


def test_experts_are_pruned_to_a_measured_budget(
    tmp_path: Path, some_text: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(tmp_path / "run", recipe="tiny-equal")
    words = ["upcycle", str(tmp_path / "run"), str(tmp_path / "less"), "--recipe", "tiny-equal", *some_text]
    assert hmoe([*words, "--width-budget", "96", "train.sample_every=0"]) == 0
    before, after = losses(capsys.readouterr().out)
    moe = open_model(tmp_path / "less", lambda text: None).model.config.moe
    assert moe is not None
    assert sum(moe.expert_widths) == 96
    assert list(moe.expert_widths) == sorted(moe.expert_widths)
    assert after < before + 0.2


def test_weak_experts_are_skipped_in_evaluation(
    tmp_path: Path, some_text: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(tmp_path / "run", recipe="tiny")
    recipe = str(tmp_path / "run" / "config.yaml")
    words = [
        "upcycle",
        str(tmp_path / "run"),
        str(tmp_path / "skip"),
        "--recipe",
        recipe,
        *some_text,
        "--skip",
    ]
    assert hmoe(words) == 0
    out = capsys.readouterr().out
    assert "relative error of layers: mean 0.0000" in out  # widths as before: every expert stays what it is
    before, after = losses(out)
    assert after == pytest.approx(before, abs=0.5)
    assert after != before
    assert hmoe(["export", str(tmp_path / "skip"), str(tmp_path / "hf")]) == 0
    text = tmp_path / "text.txt"
    text.write_text(sentences(0, 60))
    results = []
    for model in ("skip", "hf"):
        capsys.readouterr()
        assert hmoe(["eval", str(tmp_path / model), "--text", str(text), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["nats_per_token"] == results[1]["nats_per_token"]  # the Hugging Face folder skips too
    assert results[0]["step"] == 0
    assert hmoe(["export", str(tmp_path / "skip"), str(tmp_path / "mixtral"), "--format", "mixtral"]) == 2
    assert (
        hmoe(
            [
                "train",
                str(tmp_path / "skip" / "config.yaml"),
                "--run",
                str(tmp_path / "skip"),
                "train.steps=2",
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "skip" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["experts_per_token"] == 2  # not in training
    again = [
        *words[:2],
        str(tmp_path / "again"),
        "--recipe",
        str(tmp_path / "skip" / "config.yaml"),
        *some_text,
        "--skip",
    ]
    assert hmoe(again) == 2
    assert "skips experts already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "tiny-dense"], "its model is dense"),
        (["--recipe", "tiny", "model.dim=64"], "model: comes from"),
        (["--recipe", "tiny", "--choice", "best"], "must be one of importance, windows, random"),
        (["--recipe", "tiny", "--width-budget", "64"], "needs a model with experts"),
        (["--recipe", "tiny-switch"], "gates must sum to 1"),
        (["--recipe", "tiny-moepp"], "zero: a new router"),
        (["--recipe", "tiny", "--skip"], "--skip: the routers are new"),
        (["--recipe", "tiny", "--text-field", "body"], "--text-field has no effect without --text"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(tmp_path / "dense", "train.steps=1", "train.eval_every=0", recipe="tiny-dense")
    capsys.readouterr()
    assert hmoe(["upcycle", str(tmp_path / "dense"), str(tmp_path / "made"), *TEXT, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_the_new_folder_must_be_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_run(tmp_path / "dense", "train.steps=1", "train.eval_every=0", recipe="tiny-dense")
    assert hmoe(["upcycle", str(tmp_path / "dense"), str(tmp_path / "dense"), "--recipe", "tiny"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
