from pathlib import Path
from typing import Any

import pytest

from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.train.session import RunCounts
from hmoe.train.summary import list_next_steps, quote_folder, summarize_run
from tests.conftest import tiny

FOLDER = Path("runs/my tiny")


def config(recipe: str = "tiny", *overrides: str) -> RunConfig:
    return recipes.read_recipe(recipe, [*tiny(recipe), *overrides])[1]


def rows(*losses: float | None) -> list[dict[str, Any]]:
    table = []
    for step, loss in enumerate(losses, 1):
        validation = {} if loss is None else {"validation_loss": loss, "validation_bits_per_byte": loss / 2}
        table.append({"step": step, "loss": 2.0, "mean_activated_width": 20.0 + step, **validation})
    return table


def test_a_summary_is_a_few_aligned_lines() -> None:
    counts = RunCounts(step=4, tokens=123456, flops=2_600_000_000_000)
    skipped = {"step": 5, "loss": None, "mean_activated_width": 9999.0}
    lines, has_validation = summarize_run(
        "finished", config(), counts, [*rows(3.0, 2.0, None, 2.5), skipped], 187.4, FOLDER
    )
    assert has_validation
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
    lines, has_validation = summarize_run("x", config("tiny-dense"), RunCounts(step=9), rows(None), 0, FOLDER)
    assert not has_validation
    assert [line.split("  ")[0] for line in lines[1:]] == ["tokens", "FLOPs", "training time", "run folder"]
    lines, _ = summarize_run("x", config(), RunCounts(step=9), rows(3.0, 2.0, None), 0, FOLDER)
    assert "validation        loss 2.0000, 1.0000 bits per byte at step 2" in lines
    assert not any("best" in line for line in lines)


def next_steps(counts: RunCounts, *overrides: str, seconds: float = 0, recipe: str = "tiny") -> list[str]:
    chosen = config(recipe, *overrides)
    return list_next_steps(FOLDER, chosen, counts, seconds, is_finished=True, has_validation=True)


def test_next_steps_are_commands_a_shell_can_read() -> None:
    assert next_steps(RunCounts(step=200)) == [
        "hmoe generate 'runs/my tiny' \"She was\"",
        "hmoe eval 'runs/my tiny'",
        "hmoe serve 'runs/my tiny'",
        "hmoe train 'runs/my tiny' train.steps=400",
    ]
    other = next_steps(RunCounts(step=200), "train.sample_every=0", recipe="tiny-expert-choice")
    assert [step.split()[1] for step in other] == ["eval", "train"]
    stopped = list_next_steps(FOLDER, config(), RunCounts(step=3), 0, False, True)
    assert stopped == ["hmoe train 'runs/my tiny'"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.steps=10"], "train.steps=24"),  # a smaller budget than it has used
        (["train.steps=50", "train.tokens=1000"], "train.tokens=3072"),
        (["train.steps=null", "train.flops=1e9"], "train.flops=2.4e12"),
        (["train.steps=50", "train.seconds=1.5"], "train.seconds=9"),
        (["train.steps=12", "train.tokens=1536"], "train.steps=24 train.tokens=3072"),
    ],
)
def test_every_budget_that_is_used_up_is_doubled(overrides: list[str], expected: str) -> None:
    counts = RunCounts(step=12, tokens=1536, flops=1_200_000_000_000)
    assert next_steps(counts, *overrides, seconds=4.2)[-1] == f"hmoe train 'runs/my tiny' {expected}"


def test_a_folder_named_like_a_preset_or_a_flag_is_told_apart() -> None:
    assert [quote_folder(Path(name)) for name in ("tiny", "runs/tiny", "-x", "/a b")] == [
        "./tiny", "runs/tiny", "./-x", "'/a b'",
    ]  # fmt: skip
