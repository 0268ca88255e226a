"""`hmoe presets`."""

import json

import pytest

from hmoe.cli import presets
from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.config.plan import make_plan


def test_every_preset_stands_in_it_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command_line(["presets"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    names = [line.split()[0] for line in out.partition("\n\n")[0].splitlines()[1:]]
    assert sorted(names) == recipes.list_presets()
    families = [name.partition("-")[0] for name in names]
    assert list(dict.fromkeys(families)) == ["quickstart", "tiny", "dense", "hmoe", "moe", "rectify"]
    assert "none: embedded corpus" in out
    assert "data/redpajama" in out
    assert "estimate" in out


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["presets", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    plan = make_plan(recipes.read_recipe("hmoe-3b-topp")[1])
    for key in ("total_parameters", "activated_parameters", "budget_flops"):
        assert rows["hmoe-3b-topp"][key] == plan[key]
    assert rows["tiny"]["data"] == "corpus"
    assert 0 < rows["tiny"]["estimated_seconds"] < rows["quickstart"]["estimated_seconds"]


def test_time_is_the_budget_at_the_speed_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "list_presets", lambda: ["tiny"])
    (row,) = presets.list_preset_rows(1e9)
    assert row["estimated_seconds"] == row["budget_flops"] / 1e9
    config = recipes.read_recipe("tiny", ["train.steps=null", "train.seconds=70"])
    monkeypatch.setattr(recipes, "read_recipe", lambda name: config)
    assert presets.list_preset_rows(1e9)[0]["estimated_seconds"] == 70
    assert presets.measure_cpu_flops_per_second() > 1e6


@pytest.mark.parametrize("name", recipes.list_presets())
def test_what_a_preset_is_is_one_short_sentence(name: str) -> None:
    summary = presets.read_preset_summary(name)
    assert 10 < len(summary) <= 57
    assert summary[0].isupper()
    assert not summary.endswith((".", ","))
