"""`hmoe info`."""

import tomllib
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line


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
    assert [extra for extra in declared if f"extra [{extra}]" not in shown] == []
    assert {"transformers", "accelerate"} <= set(list_packages("finetune"))
    assert "extra [hf]                   installed" in shown
