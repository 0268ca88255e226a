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
