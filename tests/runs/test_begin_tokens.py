"""A run keeps what its texts begin with: from data to checkpoint to export and back; data that disagree are refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from hmoe.cli.main import run_command_line as hmoe
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.runs.begin_tokens import find_folder_begin, read_recorded_begin
from hmoe.runs.open_model import OpenedModel, open_model
from hmoe.runs.open_run import open_run
from tests.conftest import sentences, tiny
from tests.data import kinds

TRAIN = ["train.steps=1", "train.sample_every=1", "train.eval_every=0", "optim.warmup_steps=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/with and data/without <s>, and a run trained on each."""
    folder = tmp_path_factory.mktemp("begin")
    (folder / "text.txt").write_text(sentences(0, 10))
    (folder / "line.txt").write_text("The bird sings.")
    tokenizer = str(kinds.write(kinds.byte_level(), folder))
    for name, begin in (("with", None), ("without", ())):
        request = PrepareRequest([str(folder / "text.txt")], tokenizer, validation=0, begin=begin)
        prepare_data(request, folder / "data" / name)
        words = [
            "train",
            "tiny",
            *tiny("tiny"),
            *TRAIN,
            f"data.path={folder}/data/{name}",
            "data.tokenizer=null",
        ]
        assert hmoe([*words, "--run", str(folder / name)]) == 0
    return folder


def opened(folder: Path) -> OpenedModel:
    return open_model(folder, print)


def test_the_data_decide_and_the_export_and_its_import_agree(folder: Path, tmp_path: Path) -> None:
    for name, begin in (("with", (1,)), ("without", ())):
        run, export, again = folder / name, tmp_path / name, tmp_path / f"{name}-again"
        assert opened(run).begin == find_folder_begin(run, opened(run).tokenizer) == begin
        assert open_run(run, print)[3]["begin"] == list(begin)
        assert hmoe(["export", str(run), str(export)]) == 0
        [ids] = opened(run).tokenizer.encode(["the bird"])
        assert AutoTokenizer.from_pretrained(export)("the bird")["input_ids"] == [*begin, *ids]
        assert Tokenizer.from_file(str(export / "tokenizer.json")).encode("the bird").ids == [*begin, *ids]
        assert json.loads((export / "tokenizer_config.json").read_text())["add_bos_token"] == bool(begin)
        assert opened(export).begin == begin
        assert (opened(export).tokenizer.content == opened(run).tokenizer.content) == bool(begin)
        assert hmoe(["import", str(export), str(again)]) == 0
        assert opened(again).begin == begin


def test_given_weights_are_trained_on_data_that_begin_alike(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An upcycled run keeps its source's begin, though its tokenizer has a post-processor that says otherwise."""
    for name, other in (("with", "without"), ("without", "with")):
        run = str(tmp_path / name)
        words = [
            "--recipe",
            "tiny",
            f"model.moe.widths={[16] * 8}",
            "data.sequence_length=32",
            "data.batch_tokens=128",
        ]
        words += ["data.micro_batches=2", "train.device=cpu", "--text", str(folder / "line.txt"), *TRAIN]
        assert hmoe(["upcycle", str(folder / name), run, *words]) == 0
        train = ["train", f"{run}/config.yaml", "--run", run]
        capfd.readouterr()
        assert hmoe([*train, f"data.path={folder}/data/{other}"]) == 3
        told = capfd.readouterr().err
        assert "documents begin with " + {"with": "<s>", "without": "no token of their own"}[other] in told
        assert "prepare again" in told
        text, data = str(folder / "text.txt"), str(tmp_path / f"{name}-data")
        assert hmoe(["data", "prepare", text, "--validation", "0", "--tokenizer", run, "--out", data]) == 0
        assert ("every document begins with <s>" in capfd.readouterr().err) == (name == "with")
        assert hmoe([*train, f"data.path={data}"]) == 0
        assert opened(tmp_path / name).begin == ((1,) if name == "with" else ())


def test_checkpoints_without_a_record_mean_what_they_meant(folder: Path) -> None:
    tokenizer = opened(folder / "with").tokenizer
    assert read_recorded_begin({"step": 0}, tokenizer) == (1,)  # imported, and not trained yet
    assert read_recorded_begin({"step": 3}, tokenizer) == ()  # trained on data of that time
    assert read_recorded_begin({"step": 3, "begin": [1]}, tokenizer) == (1,)


def test_evaluation_and_samples_begin_as_training_did(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (folder / "with" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["sample"].startswith("The")
    numbers = []
    for name in ("with", "without"):
        assert hmoe(["eval", str(folder / name), "--text", str(folder / "line.txt"), "--json"]) == 0
        numbers.append(json.loads(capfd.readouterr().out))
    assert [row["tokens"] for row in numbers] == [15, 15]  # <s> is given, not predicted
