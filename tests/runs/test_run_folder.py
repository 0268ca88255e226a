"""One process writes a run folder."""

from pathlib import Path

import pytest

from hmoe import ConfigError, RunBusyError
from hmoe.config import recipes
from hmoe.runs.run_folder import RunFolder
from tests.conftest import tiny

CONFIG = recipes.read_recipe("tiny", [*tiny("tiny"), "train.steps=2"])[1]


def test_a_lock_of_any_bytes_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff7\n")
    with RunFolder(tmp_path, CONFIG), pytest.raises(RunBusyError, match="is training"):
        RunFolder(tmp_path, CONFIG)


def test_the_config_is_kept_with_a_path_that_leads_to_the_data_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = recipes.read_recipe("tiny", [*tiny("tiny"), "data.path=here", "data.tokenizer=null"])[1]
    with RunFolder(tmp_path / "run", config) as folder:
        folder.write_config(config)
        assert not folder.leads_elsewhere(config)
        assert folder.leads_elsewhere(
            recipes.read_recipe("tiny", [*tiny("tiny"), "data.path=there", "data.tokenizer=null"])[1]
        )
    assert recipes.read_recipe(str(tmp_path / "run" / "config.yaml"))[1].data.path == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["n" * 256, "/".join(["n" * 200] * 30)])
def test_a_name_that_is_too_long_is_no_run_folder(tmp_path: Path, name: str) -> None:
    config = recipes.read_recipe("tiny", tiny("tiny"))[1]
    with pytest.raises(ConfigError, match="cannot be a run folder: File name too long"):
        RunFolder(tmp_path / name, config)


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="cannot be a run folder"):
        RunFolder(tmp_path / "run", CONFIG)


def test_a_recipe_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    mine = "# mine\nbase: tiny\noptim: {lr: 0.1}\n"
    (tmp_path / "config.yaml").write_text(mine)
    with pytest.raises(ConfigError, match=r"holds a config\.yaml that is no run's"):
        RunFolder(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_text() == mine
    own = recipes.read_recipe(str(tmp_path / "config.yaml"), ["train.steps=9"])[1]
    with RunFolder(tmp_path, own) as folder:  # the folder's own recipe, with another budget
        folder.write_config(own)
    with RunFolder(tmp_path, CONFIG):  # begun now: a run's config that a killed process left
        pass
