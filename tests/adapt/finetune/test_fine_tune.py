"""Fine-tuning small models on small files in the tasks' own formats."""

import json
import random
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    SwitchTransformersForConditionalGeneration,
)

from hmoe import CheckpointError, ConfigError
from hmoe.adapt.duplicate import duplicate_mlps
from hmoe.adapt.finetune.fine_tune import FinetuneRequest, finetune_model
from hmoe.adapt.finetune.tasks import get_finetune_task
from hmoe.cli.main import run_command_line as hmoe
from hmoe.hub import attach_hyper
from tests.adapt.finetune.helpers import ROWS, write


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = rng.choices("film story plot the a is was it very".split(), k=5)  # noqa: SIM905
        words.insert(rng.randrange(5), "good" if i % 2 else "bad")
        rows.append({"sentence": " ".join(words), "label": i % 2, "idx": i})
    return rows


@pytest.mark.parametrize("method", ["moe", "share", "hyper"])
def test_it_learns_what_can_be_learned(
    method: str, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SST-2's format, where one word decides."""
    write(tmp_path / "data", reviews(96, 0), "train")
    write(tmp_path / "data", reviews(24, 1), "validation")
    out = tmp_path / "out"
    command = [
        "finetune",
        "sst2",
        str(switch),
        str(out),
        "--data",
        str(tmp_path / "data"),
        "--method",
        method,
    ]
    assert hmoe([*command, "--epochs", "7", "--lr", "8e-3"]) == 0, capsys.readouterr().err
    result = json.loads((out / "results.json").read_text())
    assert len(result["epochs"]) == 7
    assert result["best"]["accuracy"] == max(row["accuracy"] for row in result["epochs"]) > 90
    assert "sst2 " + method in capsys.readouterr().out
    plain = sum(
        p.numel() for p in SwitchTransformersForConditionalGeneration.from_pretrained(switch).parameters()
    )
    assert (result["parameters"] > plain) == (method != "moe")
    if method == "hyper":
        again = attach_hyper(AutoModelForSeq2SeqLM.from_pretrained(out), folder=out)
        assert sum(p.numel() for p in again.parameters()) == result["parameters"]
    more = [
        "finetune",
        "sst2",
        str(out),
        str(tmp_path / "more"),
        *command[4:],
        "--epochs",
        "1",
        "--lr",
        "1e-12",
    ]
    assert hmoe(more) == 0  # goes on with what was added
    gone_on = json.loads((tmp_path / "more" / "results.json").read_text())
    assert gone_on["best"]["accuracy"] == result["epochs"][-1]["accuracy"]
    assert gone_on["parameters"] == result["parameters"]
    if method != "moe":
        assert hmoe([*more[:3], str(tmp_path / "other"), *more[4:], "--method", "moe"]) == 2
        assert f"was fine-tuned with {method}" in capsys.readouterr().err
    assert hmoe(command) == 2  # the folder is used
    assert "out" in capsys.readouterr().err


def test_only_so_many_examples_are_trained_on_and_scored(switch: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data", reviews(20, 0), split)
    words = f"--data {tmp_path / 'data'} --epochs 1 --train-examples 7 --eval-examples 3".split()
    assert hmoe(["finetune", "sst2", str(switch), str(tmp_path / "out"), *words]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (result["train_sequences"], result["scored"]) == (7, 3)


@pytest.mark.parametrize("name", ["superglue-record", "squad", "cnn_dailymail", "superglue-multirc", "stsb"])
def test_each_kind_of_task_runs(
    name: str, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = dict(ROWS[name][0])
    if name == "squad":
        row["context"] = "it was me . " * 120  # three windows
    for split in ("train", "validation"):
        write(tmp_path / "data", [row] * 3, split)
    out = tmp_path / "out"
    assert (
        hmoe(["finetune", name, str(switch), str(out), "--data", str(tmp_path / "data"), "--epochs", "1"])
        == 0
    )
    result = json.loads((out / "results.json").read_text())
    sequences = {"superglue-record": 6}
    assert (result["train_sequences"], result["scored"]) == (sequences.get(name, 3), 3), (
        capsys.readouterr().err
    )
    assert result["settings"]["beams"] == (6 if name == "cnn_dailymail" else 1)


@pytest.mark.parametrize("method", ["moe", "share", "hyper"])
def test_gpt2_with_duplicated_mlps_learns_a_text(method: str, gpt2: Path, tmp_path: Path) -> None:
    """WikiText-2's format: one column, a line per row."""
    rng = random.Random(0)
    for split, count in (("train", 60), ("validation", 12)):
        rows = [
            {"text": "the film was " + rng.choice(["good . it is", "bad . it was"]) + " the story"}
            for _ in range(count)
        ]
        write(tmp_path / "data", rows, split)
    words = f"--data {tmp_path / 'data'} --source-length 32 --epochs 16 --lr 1e-2 --method {method}".split()
    assert hmoe(["finetune", "wikitext2", str(gpt2), str(tmp_path / "out"), *words]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["best"]["perplexity"] == min(row["perplexity"] for row in result["epochs"]) < 3
    more = [
        "finetune",
        "wikitext2",
        str(tmp_path / "out"),
        str(tmp_path / "more"),
        *words,
        "--lr",
        "1e-12",
        "--epochs",
        "1",
    ]
    assert hmoe(more) == 0
    gone_on = json.loads((tmp_path / "more" / "results.json").read_text())
    assert gone_on["best"]["perplexity"] == pytest.approx(result["epochs"][-1]["perplexity"], rel=1e-3)
    with pytest.raises(ConfigError, match="was saved with duplicated MLPs"):
        duplicate_mlps(GPT2LMHeadModel.from_pretrained(tmp_path / "out"))
    model = duplicate_mlps(GPT2LMHeadModel.from_pretrained(tmp_path / "out"), folder=tmp_path / "out")
    if method == "hyper":
        attach_hyper(model, folder=tmp_path / "out")
        assert sum(p.numel() for p in model.parameters()) == result["parameters"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["colla"], 2, "task colla: unknown"),
        (["sst2", "--method", "best"], 2, "--method best, must be one of moe, share, hyper"),
        (["sst2", "--epochs", "0"], 2, "--epochs 0, must be from 1"),
        (["sst2", "--data", "nowhere"], 3, "nowhere: no file train"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str],
    code: int,
    message: str,
    switch: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert hmoe(["finetune", words[0], str(switch), str(tmp_path / "out"), *words[1:]]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_models_that_do_not_fit_are_one_line(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data", reviews(4, 0), split)
    data = ["--data", str(tmp_path / "data")]
    assert hmoe(["finetune", "sst2", str(gpt2), str(tmp_path / "a"), *data]) == 2
    assert "is a gpt2 model; sst2 is for switch_transformers" in capsys.readouterr().err
    assert hmoe(["finetune", "sst2", str(tmp_path / "nothing"), str(tmp_path / "b"), *data]) == 4
    assert "nothing: cannot be read" in capsys.readouterr().err


def test_texts_and_losses_that_cannot_be_used_are_one_line(
    gpt2: Path, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data", [{"text": "the film was good . " * 30}] * 4, split)
    words, broken = ["--data", str(tmp_path / "data"), "--method", "moe"], tmp_path / "broken"
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    model.transformer.wpe.weight.data[3] = torch.nan
    model.save_pretrained(broken)
    PreTrainedTokenizerFast.from_pretrained(gpt2).save_pretrained(broken)
    for index, (start, more, code, message) in enumerate((
        (gpt2, [], 2, "--source-length 1024, must be at most the 64 tokens that"),
        (switch, [], 2, "is a switch_transformers model; wikitext2 is for gpt2"),
        (broken, ["--source-length", "32", "--epochs", "1"], 5, "wikitext2: a score is not finite after epoch 1"),
    )):  # fmt: skip
        assert hmoe(["finetune", "wikitext2", str(start), str(tmp_path / str(index)), *words, *more]) == code
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1]
        assert not any("Traceback" in line for line in error)


def test_a_loss_that_is_no_number_ends_it(
    switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SwitchTransformersForConditionalGeneration.from_pretrained(switch)
    model.lm_head.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    PreTrainedTokenizerFast.from_pretrained(switch).save_pretrained(tmp_path / "broken")
    for split in ("train", "validation"):
        write(tmp_path / "data", reviews(4, 0), split)
    words = [
        "sst2",
        str(tmp_path / "broken"),
        str(tmp_path / "out"),
        "--data",
        str(tmp_path / "data"),
        "--epochs",
        "1",
    ]
    assert hmoe(["finetune", *words]) == 5
    assert "sst2: the training loss is nan after epoch 1; lower --lr" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/nowhere/x", "./x", "a/b/c", "a b", "HERE", "HERE/file"])
def test_what_is_no_model_is_told_before_data_and_network(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("hmoe.adapt.finetune.fine_tune.load_task_examples", None)
    monkeypatch.setattr("hmoe.adapt.finetune.starting_model.AutoConfig", None)
    request = FinetuneRequest(get_finetune_task("sst2"), place.replace("HERE", str(tmp_path)))
    with pytest.raises(CheckpointError, match=r"no such folder|is a file|without a config\.json"):
        finetune_model(request, tmp_path / "out")


def test_the_next_step_is_the_baseline_with_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = []

    def finetune(request: FinetuneRequest, out: Path, say: object) -> dict[str, object]:
        requests.append(request)
        best = {"epoch": 1.0, "accuracy": 50.0}
        return {"task": "sst2", "method": request.method, "parameters": 12345, "best": best}

    monkeypatch.setattr("hmoe.adapt.finetune.fine_tune.finetune_model", finetune)
    words = ["sst2", "my model", str(tmp_path / "out"), "--data", "my data", "--epochs", "2", "--lr", "0.001"]
    assert hmoe(["finetune", *words]) == 0
    out = capsys.readouterr().out
    assert "sst2 hyper: accuracy 50.00 at epoch 1, 12.35k parameters" in out
    baseline = shlex.split(out.partition("next:\n")[2])
    assert hmoe(baseline[1:]) == 0
    assert "next:" not in capsys.readouterr().out
    assert [request.method for request in requests] == ["hyper", "moe"]
    assert requests[0] == replace(requests[1], method="hyper")
    assert hmoe(["finetune", *words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["out"], record["parameters"], record["next"]) == (words[2], 12345, [shlex.join(baseline)])
