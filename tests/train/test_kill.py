"""SIGKILL at every step of saving and at random times: the end is the same SHA-256 of model, optimizer and metrics."""

import sys
from pathlib import Path

import pytest

from tests.train.helpers import call

ROOT = Path(__file__).parents[2]


def campaign(mode: str, folder: Path, amount: int) -> str:
    result = call(sys.executable, "-m", "tests.train.kill_driver", mode, str(folder), str(amount), cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    print(result.stdout)
    return result.stdout


def test_killed_at_file_system_calls(tmp_path: Path) -> None:
    assert campaign("points", tmp_path, 40).endswith(" 0 with other bytes\n")


def test_killed_while_experts_are_fetched_written_and_updated(tmp_path: Path) -> None:
    """Experts lie on disk; the end has the bytes of a run that was never killed, with all of them in memory."""
    assert campaign("offloaded", tmp_path, 6).endswith(" 0 with other bytes\n")


@pytest.mark.slow
def test_killed_two_hundred_times_while_experts_move(tmp_path: Path) -> None:
    assert campaign("offloaded", tmp_path, 200).endswith(" 0 with other bytes\n")


@pytest.mark.slow
def test_killed_at_every_file_system_call(tmp_path: Path) -> None:
    assert campaign("points", tmp_path, 1).endswith(" 0 with other bytes\n")


@pytest.mark.slow
def test_killed_two_hundred_times_at_random(tmp_path: Path) -> None:
    out = campaign("random", tmp_path, 200)
    assert out.startswith("200 kills")
    assert out.endswith(" 0 with other bytes\n")
