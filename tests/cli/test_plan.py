"""`hmoe plan`."""

import json
import re

import pytest

from hmoe.cli.main import run_command_line


def test_plan_prints_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["plan", "moe-0.4b-topk", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["total_parameters"] == 417_295_104
    assert numbers["activated_parameters"] == 162_491_136
    promised = {
        "activated_parameters_range",
        "flops_per_token",
        "memory_bytes",
        "memory_by_part_bytes",
        "budget_tokens",
    }
    assert promised <= set(numbers)
    assert run_command_line(["plan", "moe-0.4b-topk", "model.layers=6"]) == 0
    assert re.search(r"  total +233\.\d\dM", capsys.readouterr().out)


def test_people_read_short_numbers_and_no_part_that_is_zero(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command_line(["plan", "hmoe-3b-topp"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^  total +2\.58B$", text, re.MULTILINE)
    assert re.search(r"^  budget +24\.84B tokens in 9,477 steps, 2\.6e20 FLOPs$", text, re.MULTILINE)
    assert re.search(r"^  expert widths +2304, 2816, ", text, re.MULTILINE)
    assert re.search(r"^  fits +in this machine's [\d.]+ GB: (yes|no)$", text, re.MULTILINE)
    assert not re.search(r"^  \S+ +0$|[\[\]]|true|false|  zero ", text, re.MULTILINE)
    assert run_command_line(["plan", "tiny", "train.steps=null", "train.seconds=5"]) == 0
    assert "budget                    of seconds alone" in capsys.readouterr().out
