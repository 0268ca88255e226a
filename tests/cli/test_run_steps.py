"""The commands that a training ends with."""

import importlib.util
from dataclasses import replace

import pytest

from hmoe.cli.run_steps import list_run_steps
from hmoe.runs.summary import RunSummary
from tests.train.test_summary import config, summary


def list_commands(run: RunSummary, is_finished: bool) -> list[str]:
    return [step.command for step in list_run_steps(run, is_finished)]


def test_eval_needs_a_held_out_split() -> None:
    assert not any(
        "hmoe eval" in step for step in list_commands(replace(summary(config()), validations=()), True)
    )


def test_next_steps_are_commands_a_shell_can_read() -> None:
    assert list_commands(summary(config("tiny", "train.steps=200"), step=200), True) == [
        "hmoe generate 'runs/my tiny' 'She was'",
        "hmoe eval 'runs/my tiny'",
        "hmoe inspect 'runs/my tiny'",
        "hmoe report 'runs/my tiny' --out 'runs/my tiny/report.html'",
        "hmoe serve 'runs/my tiny'",
        "hmoe train 'runs/my tiny' train.steps=400",
    ]
    other = list_commands(summary(config("tiny-expert-choice", "train.sample_every=0"), step=200), True)
    assert [step.split()[1] for step in other] == ["eval", "inspect", "report", "train"]
    assert list_commands(summary(config()), False) == ["hmoe train 'runs/my tiny'"]


def test_a_page_needs_its_libraries_and_a_dense_model_has_no_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = list_commands(summary(config("tiny-dense")), True)
    assert [step.split()[1] for step in dense if "inspect" in step or "report" in step] == ["report"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name))
    assert not any("report" in step or "inspect" in step for step in list_commands(summary(config()), True))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.steps=10"], "train.steps=24"),  # a smaller budget than it has used
        (["train.steps=50", "train.tokens=1000"], "train.tokens=3072"),
        (["train.steps=null", "train.flops=1e9"], "train.flops=2.4e12"),
        (["train.steps=50", "train.seconds=1.5"], "train.seconds=375"),
        (["train.steps=12", "train.tokens=1536"], "train.steps=24 train.tokens=3072"),
    ],
)
def test_every_budget_that_is_used_up_is_doubled(overrides: list[str], expected: str) -> None:
    run = summary(config("tiny", *overrides), step=12, tokens=1536, flops=1_200_000_000_000)
    assert list_commands(run, True)[-1] == f"hmoe train 'runs/my tiny' {expected}"
