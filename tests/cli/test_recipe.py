"""What the RECIPE argument of a verb names: a preset, a file, or a run folder, itself or by its config.yaml."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.errors import ConfigError

begun: list[Path] = []


class NoFolder:
    """Takes the place of a run folder: notes where a run would begin, and ends the verb."""

    def __init__(self, path: Path, config: Any, writes: bool) -> None:
        begun.append(path)
        raise typer.Exit


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that was begun, seen from the folder above it."""
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(recipes.dump_recipe(recipes.read_recipe("tiny", ["seed=7"])[1]))
    (folder / ".lock").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hmoe.runs.run_folder.RunFolder", NoFolder)
    begun.clear()
    return folder


@pytest.mark.parametrize(
    ("folder", "words", "place"),
    [
        (".", ["runs/x"], "runs/x"),
        (".", ["runs/x/"], "runs/x"),
        (".", ["runs/x/config.yaml"], "runs/x"),
        (".", ["./runs/x/config.yaml", "--run", "runs/x"], "runs/x"),
        (".", ["runs/x/config.yaml", "--run", "runs/y"], "runs/y"),
        (".", ["tiny"], "runs/tiny"),
        (".", ["mine/config.yaml"], "runs/config"),
        ("runs/x", ["config.yaml"], "."),
        ("runs/x", ["."], "."),
    ],
)
def test_train_continues_the_run_that_is_named(
    folder: str, words: list[str], place: str, run: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("base: tiny\n")
    monkeypatch.chdir(folder)
    assert run_command_line(["train", *words]) == 0
    assert [str(path) for path in begun] == [place]
    note = "hmoe: runs/y: a new run of the recipe of runs/x, from the beginning\n"
    assert capsys.readouterr().err == (note if place == "runs/y" else "")


@pytest.mark.parametrize("verb", ["plan", "config"])
def test_a_config_in_a_run_folder_is_read_by_other_verbs_too(
    verb: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([verb, "runs/x/config.yaml", "--json"]) == 0
    of_file = json.loads(capsys.readouterr().out)
    assert run_command_line([verb, "runs/x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == of_file
    assert of_file.get("seed", 7) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "hf"], "hf: is a Hugging Face folder, not a recipe; `hmoe import hf RUN` makes a run of it"),
        (["plan", "runs"], "runs: is a folder without config.yaml; a recipe is a preset, a .yaml file or a run folder"),
        (["plan", "tiny-top"], "no preset or .yaml file 'tiny-top'; nearest is tiny-topp; see `hmoe presets`"),
        (["train", "tiny", "--json"], "--json has no effect without --dry-run; remove it or add --dry-run"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_told_apart(
    words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("hf").mkdir()
    Path("hf/config.json").touch()
    assert run_command_line(words) == 2
    assert capsys.readouterr().err == f"hmoe: error: {said}\n"


def test_where_only_presets_work_a_run_folder_is_told_its_file(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"only a preset or a \.yaml file works here, .* runs/x/config"):
        recipes.read_recipe("runs/x")


def test_a_dry_run_is_one_json_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["train", "runs/x", "--dry-run", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["recipe"]["seed"] == 7
    assert numbers["plan"]["total_parameters"] > 1_000_000
    assert begun == []
