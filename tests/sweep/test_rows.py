"""The table: numbers come back exactly, and a file that is none is refused by line and column."""

import csv
import json
from pathlib import Path

import pytest

from hmoe.config.recipes import dump_recipe
from hmoe.errors import ConfigError
from hmoe.runs.control import derive_control
from hmoe.sweep.plan import SweepPlan, check_plan
from hmoe.sweep.rows import SweepRow, make_rows, make_summary, read_rows, write_rows
from hmoe.sweep.runs import hash_recipe
from tests.sweep.helpers import OPEN, make_plan, make_row


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    rows = [
        make_row("unequal-0"),
        make_row("control-0", mean_activated_width=None, budget=1e13),
        SweepRow("a-1", "a", "a", "x0.5", 1, "", 'failed: no, "really"'),
    ]
    write_rows(tmp_path / "results" / "rows.csv", rows)
    assert read_rows(tmp_path / "results" / "rows.csv") == rows
    assert read_rows(tmp_path / "none.csv") == []


def test_a_table_of_an_earlier_version_lacks_columns(tmp_path: Path) -> None:
    row = make_row("unequal-0", idle_share_end=None)
    write_rows(tmp_path / "rows.csv", [row])
    lines = list(csv.reader((tmp_path / "rows.csv").read_text().splitlines()))
    place = lines[0].index("idle_share_end")
    with (tmp_path / "rows.csv").open("w") as file:
        csv.writer(file).writerows([line[:place] + line[place + 1 :] for line in lines])
    assert read_rows(tmp_path / "rows.csv") == [row]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line must be run,group"),
        ("run,group\n", "its first line must be run,group"),
        ("HEAD,other\n", "its first line must be run,group"),
        ("HEAD,run\n", "its first line must be run,group"),
        ("HEAD\na,b\n", r":2: has 2 values, must have 28"),
        ("HEAD\n" + "a," * 4 + "x" + ",b" * 23 + "\n", r":2: seed = 'x', must be a number"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_rows(tmp_path / "head.csv", [])
    head = (tmp_path / "head.csv").read_text().strip()
    (tmp_path / "rows.csv").write_text(text.replace("HEAD", head))
    with pytest.raises(ConfigError, match=message):
        read_rows(tmp_path / "rows.csv")


def test_a_control_from_a_row_has_the_width_that_was_activated() -> None:
    plan = make_plan()
    config = plan.read_recipe(plan.groups[0], 0)
    summary = make_summary(make_row("unequal-0", mean_activated_width=31.25), config, Path("x"))
    control = derive_control(summary)
    assert control.model.moe is not None
    assert control.model.moe.expert_widths == (16,) * 4  # 31.25 / 2 experts, to a unit
    assert control.model.moe.parameter_penalty == 0
    assert control.model.moe.load_balance == 1e-2


def test_the_hash_tells_what_changes_numbers_and_nothing_else() -> None:
    plan = make_plan()

    def hash_with(*words: str) -> str:
        group = plan.groups[0].model_copy(update={"overrides": (*plan.groups[0].overrides, *words)})
        return hash_recipe(plan.read_recipe(group, 0))

    same = hash_with()
    assert hash_with("data.path=/elsewhere", "data.tokenizer=null") != same  # the tokenizer is the model's
    assert hash_with("train.save_every=7") == hash_with("train.keep=3") == same
    for word in (
        "optim.lr=1e-4",
        "train.steps=5",
        "train.eval_sequences=8",
        "train.log_every=3",  # experts per token are a mean over the logged steps
        "model.moe.parameter_penalty=0.2",
    ):
        assert hash_with(word) != same
    assert hash_recipe(plan.read_recipe(plan.groups[0], 1)) != same
    # Keys at their defaults are as good as not there, which those of a later version are not.
    assert hash_with("model.moe.router_z=0.0") == hash_with("optim.weight_decay=0.1") == same
    assert hash_with("model.moe.router={name: top_p, p: 0.6}") != same


def write_run(path: Path, rows: list[tuple[int, int, bool]]) -> SweepPlan:
    """Write the logs of a run, of (step, FLOPs, whether it was validated); return its plan."""
    plan = check_plan({"kind": "isoflop", "groups": [OPEN], "budgets": [1e9, 2e9]}, "plan")
    path.mkdir()
    (path / "config.yaml").write_text(dump_recipe(plan.read_recipe(plan.groups[0], 0)))
    lines = [
        {"step": step, "tokens": 128 * step, "flops": flops, "loss": 5.0, "experts_per_token": 2.0}
        | ({"validation_loss": 5.0 - step, "validation_bits_per_byte": 1.0} if validated else {})
        for step, flops, validated in rows
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "timing.jsonl").write_text("")
    return plan


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 9 * 10**8, False), (2, 11 * 10**8, True), (3, 21 * 10**8, True)], None),
        ([(1, 11 * 10**8, False), (2, 21 * 10**8, True)], "validated at step 2 only, after 1e.09 FLOPs"),
        ([(1, 21 * 10**8, True)], "1e.09 and 2e.09 FLOPs fall into one step, 1"),
        ([(1, 11 * 10**8, True)], "was not validated at its 2e.09 FLOPs"),
    ],
)
def test_a_budget_has_the_loss_of_the_step_that_reached_it(
    tmp_path: Path, rows: list[tuple[int, int, bool]], message: str | None
) -> None:
    plan = write_run(tmp_path / "run", rows)
    arguments = (
        make_row("unequal-0"),
        tmp_path / "run",
        plan.read_recipe(plan.groups[0], 0),
        plan.budgets,
        1000,
    )
    if message is not None:
        with pytest.raises(ConfigError, match=message):
            make_rows(*arguments)
        return
    measured = make_rows(*arguments)
    assert [(row.budget, row.step, row.validation_loss) for row in measured] == [(1e9, 2, 3.0), (2e9, 3, 2.0)]


def test_means_are_over_the_steps_that_log_every_logs(tmp_path: Path) -> None:
    """Whatever else has a row: a validation, a sample, a warning."""
    plan = write_run(tmp_path / "run", [(1, 9 * 10**8, False), (2, 11 * 10**8, True), (3, 21 * 10**8, True)])
    words = [*plan.groups[0].overrides, "train.log_every=2"]
    group = plan.groups[0].model_copy(update={"overrides": tuple(words)})
    (tmp_path / "run" / "config.yaml").write_text(dump_recipe(plan.read_recipe(group, 0)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line, count in zip(lines, (5.0, 2.0, 3.0), strict=True):
        line["experts_per_token"] = count
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = plan.read_recipe(group, 0)
    rows = make_rows(make_row("unequal-0"), tmp_path / "run", config, plan.budgets, 1000)
    assert [row.experts_per_token for row in rows] == [2.0, 2.0]
