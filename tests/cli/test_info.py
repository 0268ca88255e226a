"""`hmoe info`."""

import json
import tomllib
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.errors import make_install_command


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("hmoe", "torch", "cpu", "gpu", "extra [data]"))


def test_info_names_every_extra(capsys: pytest.CaptureFixture[str]) -> None:
    from hmoe.cli.info import list_packages

    assert run_command_line(["info"]) == 0
    shown = capsys.readouterr().out
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert [
        extra
        for extra in declared
        if f"extra [{extra}]" not in shown and extra not in ("all", "browser", "dev", "site")
    ] == []
    assert {"transformers", "accelerate"} <= set(list_packages("finetune"))
    assert "extra [hf]                   installed" in shown


def test_what_is_missing_is_installed_from_where_hmoe_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hmoe.cli.info._list_missing", lambda extra: ["x"] if extra in ("all", "hf") else [])
    assert run_command_line(["info"]) == 0
    shown = capsys.readouterr().out
    assert f"extra [hf]                   missing x: {make_install_command('hf')}\n" in shown
    assert "[all]" not in shown
    assert run_command_line(["info", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["extras"]["all"] == {"missing": ["x"], "install": make_install_command("all")}
    assert numbers["extras"]["data"] == {"missing": [], "install": None}
