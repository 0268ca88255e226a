"""`hmoe train`."""

from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line


def test_dry_run_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["train", "tiny", "--dry-run"]) == 0
    assert "fits " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
