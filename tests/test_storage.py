"""Names that are not UTF-8, and systems without locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmoe import ConfigError
from hmoe.storage import lock_file, open_atomic, open_utf8_name, read_json


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


@pytest.mark.parametrize(
    ("content", "reason"), [(b"[" * 100_000, "nested too deep"), (b"{", "Expecting"), (b"\xff", "decode")]
)
def test_what_is_no_json_is_a_value_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "a.json")


def test_a_json_file_of_any_size_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1.5]}')
    assert read_json(tmp_path / "a.json") == {"a": [1.5]}
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**34)  # takes no room on the disk
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "a.json")


def test_a_system_without_file_locks_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / "lock").open("w") as file, pytest.raises(ConfigError, match="on Windows use WSL"):
        lock_file(file)
    code = "import sys; sys.modules['fcntl'] = None; import hmoe.data.prepare, hmoe.runs.run_folder"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_system_without_fcntl_and_sysconf_can_do(tmp_path: Path) -> None:
    """As Windows is: the layer works, and the trainer says in one line why it cannot."""
    code = (
        "import os, sys; sys.modules['fcntl'] = None; del os.sysconf\n"
        "import hmoe, torch\n"
        "assert hmoe.MoE(8, (4, 12))(torch.randn(3, 8))[0].isfinite().all()\n"
        "from hmoe.cli.main import run_command_line as run\n"
        "print(run(['train', 'tiny', '--run', sys.argv[1]]), run(['plan', 'tiny']))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout == "2 2\n"
    train, plan = result.stderr.splitlines()
    assert "Python has no fcntl" in train
    assert "os.sysconf" in plan
    assert all("on Windows use WSL" in line for line in (train, plan))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("any"), KeyboardInterrupt()]
)
def test_a_file_that_is_not_written_to_its_end_leaves_the_old_one(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    with open_atomic(path) as file:
        file.write(b"old")
    with pytest.raises(type(error)) as raised, open_atomic(path) as file:  # noqa: PT012 - the error is raised within
        file.write(b"half")
        raise error
    assert not isinstance(error, OSError) or raised.value.filename == str(path)  # type: ignore[attr-defined]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), open_atomic(tmp_path / "state") as file:
        file.write((tmp_path / "absent").read_bytes())
    with pytest.raises(OSError, match=r"none left.*state"), open_atomic(tmp_path / "state"):
        raise OSError("none left")
    assert not list(tmp_path.iterdir())
