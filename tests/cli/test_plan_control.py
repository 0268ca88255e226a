"""`hmoe plan RUN --control`: a recipe that trains as it stands."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.config.recipes import read_recipe
from hmoe.runs.summary import read_run_summary
from tests.runs.test_comparison import write_run


@pytest.fixture
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), "tiny", 2.0, "data.path=corpus", width=233.2)


@pytest.mark.usefixtures("_run")
def test_the_control_is_printed_written_and_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["plan", "run", "--control"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Uniform control of run, which activated 233.20 hidden units\n")
    assert run_command_line(["plan", "--control", "run", "seed=3", "--out", "mine.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "8 equal experts of 117 hidden units." in shown
    assert shown.endswith("next:\n  hmoe train mine.yaml\n")
    assert "Changed afterwards: seed=3." in shown
    name, config = read_recipe("mine.yaml")
    assert (name, config.seed) == ("mine", 3)
    assert config.model == read_recipe("tiny-control")[1].model
    assert "Instead of parameter_penalty 0.1 it has parameter_penalty 0.0." in shown
    assert "Instead of load_balance 0.0 it has load_balance 0.01." in shown
    assert (config.train.steps, config.train.flops) == (
        None,
        round(read_run_summary(Path("run")).flops * 15 / 16),
    )
    assert run_command_line(["plan", "run", "--control", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["width"] == 117
    assert record["mean_activated_width"] == pytest.approx(233.2, abs=1e-3)
    assert record["recipe"]["model"]["moe"]["widths"]["total"] == 936


@pytest.mark.usefixtures("_run")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--control"], "tiny: is no run folder; --control needs one"),
        (["run", "--control", "--memory", "80"], "--memory has no effect with --control"),
        (["run", "--out", "x.yaml"], "--out has no effect without --control"),
        (["run", "--control", "--out", "x"], "nearest is x.yaml"),
        (
            ["run", "--control", "--out", "no/x.yaml"],
            "--out no/x.yaml: cannot be written: No such file or directory",
        ),
        (["nowhere", "--control"], "nowhere: no such run folder"),
        (["run", "--control", "--out", "run/config.yaml"], "exists already"),
    ],
)
def test_what_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["plan", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("_run")
def test_a_changed_model_is_told_beside_the_control(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["plan", "run", "--control", "model.moe=null", "model.ffn=64"]) == 0
    text = capsys.readouterr().out
    assert "# 8 equal experts of 117 hidden units.\n" in text
    assert "# Changed afterwards: model.moe=null model.ffn=64.\n" in text
