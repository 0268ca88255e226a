"""A run follows its data: the fingerprint binds, not the path."""

import json
import shutil
from pathlib import Path

import pytest

from hmoe import DataError
from hmoe.cli.main import run_command_line as hmoe
from hmoe.config import recipes
from hmoe.data.prepare import PrepareRequest, prepare_data
from tests.conftest import sentences
from tests.train.helpers import run

MINI = ["model.layers=1", "model.dim=16", "train.eval_every=0", "train.save_every=100", "data.tokenizer=null"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data `a` and `other`, and a run trained on `a`, named relative to it."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "other")):
        lines = (json.dumps({"text": sentences(seed * 100 + i, 6)}) + "\n" for i in range(20))
        Path(f"{name}.jsonl").write_text("".join(lines))
        prepare_data(PrepareRequest([f"{name}.jsonl"], "bytes", validation=0.2), Path(name))
    run(Path("r"), *MINI, "data.path=a", "train.steps=1")
    return tmp_path


def test_a_run_is_used_from_anywhere_and_follows_its_data(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "x").mkdir()
    monkeypatch.chdir(folders / "x")
    assert hmoe(["eval", "../r"]) == 0
    free = ["data.verify=false", "train.steps=2", "train.dead_after=5", "train.device=auto"]
    run(Path("../r"), *MINI, "data.path=../x/../a", *free)
    (folders / "a").rename(folders / "moved")
    assert hmoe(["eval", "../r"]) == 3
    assert "no index.json there" in (err := capsys.readouterr().err)
    assert "hmoe train ../r data.path=NEW" in err
    before = (folders / "r" / "config.yaml").read_bytes()
    for other in ("other", "nowhere"):
        assert hmoe(["train", "../r", f"data.path=../{other}"]) == 3  # finished, and still not of these data
        assert hmoe(["train", "../r", f"data.path=../{other}", "train.steps=3"]) == 3
    assert "no index.json there" in capsys.readouterr().err
    assert (folders / "r" / "config.yaml").read_bytes() == before
    assert hmoe(["train", "../r", "data.path=../moved"]) == 0
    assert "finished already: step 2" in capsys.readouterr().out
    assert hmoe(["eval", "../r"]) == 0


def test_other_data_at_the_same_place_is_neither_trained_on_nor_evaluated(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("a")
    shutil.move("other", "a")
    with pytest.raises(DataError, match=r"data\.path = .*/a: the data changed since the run was saved"):
        run(Path("r"), *MINI, "data.path=a", "train.steps=2")
    assert hmoe(["eval", "r"]) == 3
    assert "the data changed" in capsys.readouterr().err


def test_a_recipes_relative_path_is_relative_to_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("proj", "base", "data", "base/data"):
        Path(folder).mkdir()
    Path("base/b.yaml").write_text("base: tiny\ndata: {path: data}\n")
    Path("proj/inherits.yaml").write_text("base: ../base/b.yaml\n")
    Path("proj/own.yaml").write_text("base: ../base/b.yaml\ndata: {path: ../data}\n")
    Path("proj/before.yaml").write_text("base: tiny\ndata: {path: data}\n")

    def path(*words: str) -> Path:
        return Path(recipes.read_recipe(words[0], words[1:])[1].data.path)

    assert path("proj/inherits.yaml").samefile("base/data")
    assert path("proj/own.yaml").samefile("data")
    assert path("proj/own.yaml").is_absolute()
    assert path("proj/own.yaml", "data.path=data") == Path(
        "data"
    )  # of the command line: of the working directory
    assert path("proj/before.yaml") == Path(
        "data"
    )  # a recipe that was written for the working directory still works
    Path("proj/data").mkdir()
    assert path("proj/before.yaml") == tmp_path / "proj" / "data"
    Path("proj/corpus.yaml").write_text("base: tiny\ndata: {path: corpus}\n")
    assert path("proj/corpus.yaml") == Path("corpus")


def test_data_in_a_folder_whose_name_is_not_utf8(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latin = folders / "caf\udce9"
    latin.mkdir()
    (folders / "a").rename(latin / "a")
    monkeypatch.chdir(latin)
    assert hmoe(["train", "../r", "data.path=a", "train.steps=2"]) == 0
    assert hmoe(["train", "../r", "train.steps=3"]) == 0
    assert hmoe(["eval", "../r"]) == 0
    Path("recipe.yaml").write_text("base: tiny\ndata: {path: a}\n")
    assert recipes.read_recipe(str(latin / "recipe.yaml"))[1].data.path == "a"
