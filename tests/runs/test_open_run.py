from pathlib import Path

import pytest

from hmoe import ConfigError
from hmoe.runs.open_run import open_run


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        open_run(tmp_path, print)
