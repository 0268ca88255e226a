"""`hmoe config`."""

from pathlib import Path

import pytest
import yaml

from hmoe.cli.main import run_command_line
from hmoe.config import recipes


def test_config_prints_a_recipe_that_trains_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["config", "hmoe-3b-topp", "--optim.lr", "3e-4", "seed=5"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "r.yaml").write_text(text)
    config = recipes.read_recipe(str(tmp_path / "r.yaml"))[1]
    data = f"data.path={tmp_path / 'data' / 'redpajama'}"  # relative to the file
    assert config == recipes.read_recipe("hmoe-3b-topp", ["optim.lr=3e-4", "seed=5", data])[1]
    assert yaml.safe_load(text)["optim"]["lr"] == 3e-4
