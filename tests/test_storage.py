"""Names that are not UTF-8, and systems without locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmoe import ConfigError
from hmoe.storage import lock_file, open_utf8_name


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    save_file({"a": torch.arange(3)}, tmp_path / "a")
    (tmp_path / "a").rename(file)
    with open_utf8_name(file) as name:
        assert load_file(name)["a"].tolist() == [0, 1, 2]
    with open_utf8_name(tmp_path) as name:
        assert name == str(tmp_path)


def test_a_system_without_file_locks_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / "lock").open("w") as file, pytest.raises(ConfigError, match="on Windows use WSL"):
        lock_file(file)
    code = "import sys; sys.modules['fcntl'] = None; import hmoe.data.prepare, hmoe.runs.run_folder"
    subprocess.run([sys.executable, "-c", code], check=True)
