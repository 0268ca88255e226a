"""What a training says when it ends."""

from dataclasses import replace
from pathlib import Path

from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.runs.summary import RunSummary
from hmoe.runs.validations import Validation
from hmoe.train.summary import describe_run
from tests.conftest import tiny

FOLDER = Path("runs/my tiny")
VALIDATIONS = (Validation(1, 3.0, 1.5), Validation(2, 2.0, 1.0), Validation(4, 2.5, 1.25))


def config(recipe: str = "tiny", *overrides: str) -> RunConfig:
    return recipes.read_recipe(recipe, [*tiny(recipe), *overrides])[1]


def summary(
    chosen: RunConfig, step: int = 4, tokens: int = 123456, flops: int = 2_600_000_000_000
) -> RunSummary:
    width = 22.0 if chosen.model.moe else None
    return RunSummary(FOLDER, chosen, step, tokens, flops, VALIDATIONS, width, seconds=187.4)


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
    run = replace(summary(config("tiny-dense")), validations=())
    names = [line.split("  ")[0] for line in describe_run(run, "x")[1:]]
    assert names == ["tokens", "FLOPs", "training time", "run folder"]
    lines = describe_run(replace(summary(config()), step=9, validations=VALIDATIONS[:2]), "x")
    assert "validation        loss 2.0000, 1.0000 bits per byte at step 2" in lines
    assert not any("best" in line for line in lines)
