"""What a training says when it ends."""

from dataclasses import replace
from pathlib import Path

import pytest

from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.runs.summary import RunSummary
from hmoe.train.summary import describe_run, list_next_steps, quote_folder
from tests.conftest import tiny

FOLDER = Path("runs/my tiny")
VALIDATION = ((1, 3.0, 1.5), (2, 2.0, 1.0), (4, 2.5, 1.25))


def config(recipe: str = "tiny", *overrides: str) -> RunConfig:
    return recipes.read_recipe(recipe, [*tiny(recipe), *overrides])[1]


def summary(
    chosen: RunConfig, step: int = 4, tokens: int = 123456, flops: int = 2_600_000_000_000
) -> RunSummary:
    width = 22.0 if chosen.model.moe else None
    return RunSummary(
        FOLDER, chosen, step, tokens, flops, VALIDATION, width, None, None, 187.4, data=None, warnings=()
    )


def test_a_summary_is_a_few_aligned_lines() -> None:
    lines = describe_run(summary(config()), "finished")
    assert lines == [
        "finished: step 4",
        "tokens            123,456",
        "FLOPs             2.6e12",
        "validation        loss 2.5000, 1.2500 bits per byte",
        "best validation   loss 2.0000, 1.0000 bits per byte at step 2",
        "training time     3m07s",
        "activated         22 of 32 units of a uniform router, in the mean",
        "run folder        runs/my tiny",
    ]
    assert max(map(len, lines)) < 80


def test_nothing_is_said_of_what_a_run_does_not_have() -> None:
    run = replace(summary(config("tiny-dense")), validation=())
    names = [line.split("  ")[0] for line in describe_run(run, "x")[1:]]
    assert names == ["tokens", "FLOPs", "training time", "run folder"]
    assert not any("hmoe eval" in step for step in list_next_steps(run, True))
    lines = describe_run(replace(summary(config()), step=9, validation=VALIDATION[:2]), "x")
    assert "validation        loss 2.0000, 1.0000 bits per byte at step 2" in lines
    assert not any("best" in line for line in lines)


def test_next_steps_are_commands_a_shell_can_read() -> None:
    assert list_next_steps(summary(config("tiny", "train.steps=200"), step=200), True) == [
        "hmoe generate 'runs/my tiny' \"She was\"",
        "hmoe eval 'runs/my tiny'",
        "hmoe serve 'runs/my tiny'",
        "hmoe train 'runs/my tiny' train.steps=400",
    ]
    other = list_next_steps(summary(config("tiny-expert-choice", "train.sample_every=0"), step=200), True)
    assert [step.split()[1] for step in other] == ["eval", "train"]
    assert list_next_steps(summary(config()), False) == ["hmoe train 'runs/my tiny'"]


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
    assert list_next_steps(run, True)[-1] == f"hmoe train 'runs/my tiny' {expected}"


def test_a_folder_named_like_a_preset_or_a_flag_is_told_apart() -> None:
    assert [quote_folder(Path(name)) for name in ("tiny", "runs/tiny", "-x", "/a b")] == [
        "./tiny", "runs/tiny", "./-x", "'/a b'",
    ]  # fmt: skip
