"""What is read of a run folder before anything is told of it."""

import pytest

from hmoe.errors import ConfigError
from hmoe.runs.run_logs import read_run_logs
from tests.train.helpers import run


def test_rows_behind_the_newest_checkpoint_are_left_out(tmp_path):
    run(tmp_path / "r", "train.steps=4", "train.save_every=2")
    logs = read_run_logs(tmp_path / "r")
    assert [row["step"] for row in logs.rows] == [row["step"] for row in logs.timing] == [1, 2, 3, 4]
    assert (logs.state["step"], logs.config.train.steps, logs.warnings) == (4, 4, [])
    newest = max((tmp_path / "r").glob("checkpoints/*"), key=lambda path: path.name)
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    newest.rmdir()
    assert [row["step"] for row in read_run_logs(tmp_path / "r").rows] == [1, 2]


def test_another_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder, it has no config"):
        read_run_logs(tmp_path)
