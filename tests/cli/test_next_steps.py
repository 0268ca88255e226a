"""What verbs print as next steps is run, word for word; and their records as JSON."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from hmoe.cli.main import run_command_line as hmoe
from hmoe.cli.next_steps import set_key
from hmoe.config.recipes import read_recipe
from hmoe.data.shards import open_index
from tests.conftest import sentences
from tests.train.helpers import rows
from tests.train.helpers import run as train_run

SHORT = [
    "train.steps=1",
    "data.batch_tokens=128",
    "train.eval_every=0",
    "train.sample_every=0",
    "train.device=cpu",
]
MINI = [
    "model.layers=1", "model.dim=16", "data.sequence_length=32", "data.batch_tokens=64", "train.steps=1",
    "train.sample_every=0", "train.eval_every=0",
]  # fmt: skip
TRAIN = [
    "data.sequence_length=32",
    "data.batch_tokens=64",
    "data.micro_batches=1",
    *SHORT[2:],
    "train.steps=2",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on the embedded corpus, in bytes."""
    folder = tmp_path_factory.mktemp("next") / "run"
    train_run(folder, *MINI)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text."""
    monkeypatch.chdir(tmp_path)
    Path("my text.txt").write_text("\n".join(sentences(seed, 3) for seed in range(4)))
    return tmp_path


class Verb:
    """Runs a verb, and reads what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> list[list[str]]:
        """The words of the commands that it names, FILES replaced by a text."""
        self._capsys.readouterr()
        assert hmoe(list(map(str, words))) == 0, self._capsys.readouterr().err
        out = self._capsys.readouterr().out
        _, heading, text = out.partition("next:\n")
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
        assert not heading or (lines and all(line[0] == "hmoe" for line in lines))
        return [["my text.txt" if word == "FILES" else word for word in line[1:]] for line in lines]

    def read_json(self, *words: str | Path) -> dict[str, Any]:
        """The object that is all of standard output."""
        self._capsys.readouterr()
        assert hmoe([*map(str, words), "--json"]) == 0, self._capsys.readouterr().err
        record: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return record


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    return Verb(capsys)


@pytest.mark.parametrize("name", ["1e3", "-x", "data/né #1"])
def test_prepared_data_are_trained_on_whatever_their_name(name: str, here: Path, verb: Verb) -> None:
    out = [f"--out={name}"] if name.startswith("-") else ["--out", name]
    ((*train,),) = verb("data", "prepare", "my text.txt", "--tokenizer", "bytes", *out)
    assert train[:2] == ["train", "tiny"]
    assert "model.vocab=257" in train
    assert hmoe([*train, *SHORT]) == 0
    assert read_recipe("runs/tiny/config.yaml")[1].data.path == str(here / name)


def test_a_run_of_the_same_name_is_not_taken_again(here: Path, verb: Verb) -> None:
    words = ("data", "prepare", "my text.txt", "--tokenizer", "bytes", "--out", "d")
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/d").mkdir()
    Path("runs/d/x").touch()
    ((*train,),) = verb(*words)
    assert train[-2:] == ["--run", "runs/d-2"]
    assert hmoe([*train, *SHORT]) == 0
    assert len(rows(Path("runs/d-2"))) == 1


@pytest.mark.parametrize(("num_bytes", "length"), [(50, 32), (1, 1)])
def test_of_few_data_shorter_sequences_are_trained(
    num_bytes: int, length: int, here: Path, verb: Verb
) -> None:
    Path("few.txt").write_text("x" * num_bytes)
    words = ("data", "prepare", "few.txt", "--tokenizer", "bytes", "--validation", "0", "--out", "few")
    ((*train,),) = verb(*words)
    assert f"data.sequence_length={length}" in train
    assert hmoe([*train, *SHORT]) == 0


def test_from_run_to_folder_to_run_by_what_is_printed(here: Path, trained: Path, verb: Verb) -> None:
    ((*generate,),) = verb("export", trained, "hf folder")
    assert generate[:2] == ["generate", "hf folder"]
    assert hmoe([*generate, "--max-tokens", "2"]) == 0
    # A preset's name would be taken for the preset.
    write, prepare, train = verb("import", "hf folder", "tiny", *TRAIN)
    assert write[:2] == ["generate", "./tiny"]
    assert hmoe([*write, "--max-tokens", "2"]) == 0
    assert train == ["train", "./tiny"]
    assert hmoe(prepare) == 0
    assert hmoe(train) == 0
    assert len(rows(Path("tiny"))) == 2


def test_a_model_that_cannot_generate_is_evaluated(here: Path, verb: Verb) -> None:
    train_run(Path("r"), *MINI, "model.moe.router={name: expert_choice}")
    ((*evaluate,),) = verb("export", "r", "hf")
    assert evaluate == ["eval", "hf", "--text", "my text.txt"]
    assert hmoe(evaluate) == 0


def test_data_of_another_tokenizer_are_left_alone(here: Path, trained: Path, verb: Verb) -> None:
    verb("export", trained, "hf")
    verb("data", "prepare", "my text.txt", "--tokenizer", "bpe:260", "--out", "data/hf")
    _, prepare, train = verb("import", "hf", "r", *TRAIN)
    assert prepare[-2:] == ["--out", "data/hf-2"]
    assert train == ["train", "r", "data.path=data/hf-2"]
    # The run waits for these data, and is what trains on them.
    assert verb(*prepare) == [train]
    assert hmoe(train) == 0
    assert len(rows(Path("r"))) == 2
    # Now it is bound to them.
    assert verb(*prepare[:-1], "data/other")[0][:2] == ["train", "tiny"]
    assert verb("import", "hf", "r2", *TRAIN, "data.path=data/hf-2")[1:] == [["train", "r2"]]


def test_an_upcycled_run_trains_on_the_data_of_its_source(here: Path, trained: Path, verb: Verb) -> None:
    words = (
        "upcycle",
        trained,
        "more",
        "--recipe",
        "tiny",
        "--text",
        "my text.txt",
        "--tokens",
        "64",
        *TRAIN,
    )
    write, train = verb(*words)
    assert train == ["train", "more"]
    assert hmoe([*write, "--max-tokens", "2"]) == 0
    assert hmoe(train) == 0
    assert len(rows(Path("more"))) == 2


def test_an_upcycled_run_whose_data_are_missing_is_given_some(
    here: Path, trained: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--recipe", "tiny", "--text", "my text.txt", "--tokens", "64", *TRAIN)
    verb("export", trained, "hf")
    _, prepare, train = verb("upcycle", "hf", "new", *words)
    assert prepare == ["data", "prepare", "my text.txt", "--tokenizer", "new", "--out", "data/hf"]
    assert hmoe(prepare) == 0
    assert hmoe(train) == 0
    # Of a corpus that another tokenizer encodes, its key goes too.
    monkeypatch.setattr("hmoe.data.open.open_corpus", lambda name: open_index(Path("other")))
    verb("data", "prepare", "my text.txt", "--tokenizer", "bytes", "--out", "other")
    _, prepare, train = verb("upcycle", "hf", "newer", *words, "data.path=corpus", "data.tokenizer=bytes")
    assert train == ["train", "newer", "data.path=data/newer", "data.tokenizer=null"]
    assert hmoe(prepare) == 0
    assert hmoe(train) == 0


def test_records_are_one_object_each(here: Path, trained: Path, verb: Verb) -> None:
    data = verb.read_json("data", "prepare", "my text.txt", "--tokenizer", "bytes", "--out", "d")
    size = Path("my text.txt").stat().st_size
    assert data["text_bytes"] == {"train": size, "valid": 0} or data["text_bytes"]["valid"] == size
    assert sum(data["tokens"].values()) == size + sum(data["documents"].values())
    assert (data["out"], data["vocabulary"], data["skipped_documents"]) == ("d", 257, 0)
    export = verb.read_json("export", trained, "hf", "--precision", "bfloat16")
    assert export["weight_bytes"] == 2 * export["parameters"]
    assert (export["model"], export["folder"], export["format"]) == (str(trained), "hf", "hmoe")
    assert export["next"] == ["hmoe generate hf 'She was'"]
    namespace: dict[str, Any] = {}
    exec(export["load"], namespace)
    assert sum(p.numel() for p in namespace["model"].parameters()) == export["parameters"]
    run = verb.read_json("import", "hf", "r", *TRAIN)
    assert (run["run"], run["source"], run["parameters"]) == ("r", "hf", export["parameters"])
    assert run["next"] == [
        "hmoe generate r 'She was'",
        "hmoe data prepare FILES --tokenizer r --out data/hf",
        "hmoe train r",
    ]
    words = ("upcycle", trained, "u", "--recipe", "tiny", "--tokens", "64", *TRAIN)
    up = verb.read_json(*words, "--text", "my text.txt", "model.moe.widths=[16, 24, 16, 8]")
    assert up["widths"] == [16, 24, 16, 8]
    assert up["parameters"] < up["parameters_before"]
    assert up["loss_before"] > 0 < up["loss_after"]
    assert all(0 < error < 10 for error in up["relative_errors"])
    shutil.rmtree("u")


@pytest.mark.parametrize("value", ["plain", "~", "1e3", "a: b", "[x", "x #y", "'", "é"])
def test_an_override_is_read_back_as_it_was_given(value: str) -> None:
    assert read_recipe("tiny", [set_key("data.path", value)])[1].data.path == value
