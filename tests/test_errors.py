"""One tree of errors; each may say which arguments it is about."""

import json
import os
import pickle
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import hmoe
from hmoe import ConfigError
from hmoe.errors import DataError, HMoEError, make_install_command, make_missing_extra_error


def test_an_error_keeps_what_it_is_about() -> None:
    assert HMoEError("x").arguments == ()
    assert ConfigError("x", argument="a").arguments == ("a",)
    copy = pickle.loads(pickle.dumps(DataError("x", argument=("a", "b"))))
    assert (str(copy), copy.arguments) == ("x", ("a", "b"))


def test_a_message_is_one_line_of_bounded_length_whatever_it_shows() -> None:
    assert str(ConfigError("a\nb\x1b[31m\u2028c\u202ed\x85")) == "a b [31m c d "
    for name in (
        "caf\udce9",
        "資料\u3000一",
        "می\u200cخواهم",
        "a\u00a0b",
        "\ue000",
    ):  # names of files, shown as they are
        assert str(ConfigError(name)) == name
    long = str(DataError("key: got " + "x" * 5000 + "; must be one of these"))
    assert len(long) <= 560
    assert long.startswith("key: got x")
    assert long.endswith("; must be one of these")
    path = "/" + "/".join(["folder" * 8] * 12)
    told = str(DataError(f"{path}/a.bin: SHA-256 differs from index.json; delete {path} and prepare again"))
    assert "SHA-256 differs from index.json; delete " in told
    assert len(str(DataError("many words " * 5000))) <= 560
    assert str(DataError("x" * 560)) == "x" * 560
    assert str(DataError()) == ""


INSTALLED = {
    "editable": (
        {"url": "file:///home/a%20b", "dir_info": {"editable": True}}, "pip install -e '/home/a b[hf]'"
    ),
    "local": ({"url": "file:///home/hmoe", "dir_info": {}}, "pip install '/home/hmoe[hf]'"),
    "wheel": ({"url": "file:///tmp/h.whl", "archive_info": {}}, "pip install '/tmp/h.whl[hf]'"),
    "git": (
        {"url": "https://x.org/hmoe.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
        "pip install 'hmoe[hf] @ git+https://x.org/hmoe.git@0a1b'",
    ),
    "link": ({"url": "https://x.org/h.whl", "archive_info": {}}, "pip install 'hmoe[hf] @ https://x.org/h.whl'"),
    "registry": (None, "pip install 'hmoe[hf]'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INSTALLED)
def test_an_extra_comes_from_where_hmoe_was_installed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, command = INSTALLED[kind]

    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    assert make_install_command("hf") == command
    error = make_missing_extra_error("models", "hf")
    assert str(error) == f"models need the hf extra: {command}"
    assert shlex.split(command)[:2] == ["pip", "install"]


def test_without_an_installation_an_extra_comes_from_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", refuse)
    root = Path(__file__).resolve().parents[1]
    assert shlex.split(make_install_command("hf")) == ["pip", "install", "-e", f"{root}[hf]"]
    monkeypatch.setattr("hmoe.errors.__file__", str(tmp_path / "src" / "hmoe" / "errors.py"))
    assert make_install_command("hf") == "pip install 'hmoe[hf]'"


def test_errors_import_nothing_slow() -> None:
    code = "import sys; before = set(sys.modules); import hmoe.errors; print(*set(sys.modules) - before)"
    out = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(hmoe.__file__).parents[1])},  # -S: nothing is installed
    ).stdout
    assert not {"json", "pathlib", "shlex", "urllib", "importlib.metadata", "email"} & set(out.split())
