"""The published results: their tables are whole, their commands make their plans, their pages show their numbers."""

import re
from pathlib import Path
from typing import Any

import pytest

from hmoe.cli.main import run_command_line
from hmoe.sweep.folder import check_same_plan
from hmoe.sweep.outcome import summarize_rows
from hmoe.sweep.plan import SweepPlan, read_plan
from hmoe.sweep.queue import FAILED, check_rows
from hmoe.sweep.rows import read_rows
from hmoe.sweep.runs import list_planned_runs, make_run_config
from hmoe.sweep.tuning import list_choices, rank_trials
from tests.repo.results_tables import FOLDERS, PAGE, RESULTS, list_sweep_commands


@pytest.fixture(autouse=True)
def _know_the_loss_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMOE_EXTENSIONS", str(RESULTS / "expected_width.py"))


def test_the_page_has_a_command_and_an_answer_for_each_folder() -> None:
    assert FOLDERS
    assert list_sweep_commands().keys() == {folder.name for folder in FOLDERS}
    for folder in FOLDERS:
        needs = (
            "HMOE_EXTENSIONS=docs/results/expected_width.py "
            if "expected_width" in (folder / "sweep.yaml").read_text()
            else ""
        )
        assert f"```text\n{needs}hmoe sweep run docs/results/{folder.name}\n```\n\n```text\n" in PAGE
        assert sorted(
            path.name for path in folder.iterdir() if path.name not in (".lock", "runs", "logs")
        ) == [
            "rows.csv",
            "sweep.yaml",
        ]


def make_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> SweepPlan:
    """Return the plan that the page's command for a folder makes."""
    plans: list[SweepPlan] = []
    monkeypatch.setattr("hmoe.cli.sweep_run.run_plan", lambda plan, options: plans.append(plan))
    monkeypatch.chdir(RESULTS.parents[1])
    assert run_command_line(list_sweep_commands()[name]) == 0
    return plans[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_command_of_a_folder_makes_its_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, plan = read_plan(folder / "sweep.yaml"), make_plan(folder.name, monkeypatch)
    check_same_plan(own, plan, folder / "sweep.yaml")
    assert plan.seeds == own.seeds


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_rows_of_a_folder_are_of_its_plan_and_name_their_origin(folder: Path) -> None:
    plan, rows = read_plan(folder / "sweep.yaml"), read_rows(folder / "rows.csv")
    by_run: dict[str, list[Any]] = {}
    for row in rows:
        by_run.setdefault(row.run, []).append(row)
    summaries = summarize_rows(plan, rows, folder)
    runs = {run.name: run for run in list_planned_runs(plan)}
    assert by_run.keys() == runs.keys()
    (data,) = {row.data for row in rows if row.is_finished}
    assert f"fingerprint begins with {str(data)[:12]};" in PAGE
    for name, own in by_run.items():
        if own[0].status.startswith(FAILED):
            continue
        check_rows(own, make_run_config(plan, runs[name], summaries), plan.budgets, name)
        for row in own:
            assert row.validation_tokens == 524_288
            # "+": the tables beside the code were being added to.
            assert re.fullmatch(r"[0-9a-f]{12}\+?", row.commit or "")
            assert row.machine
            assert row.seconds
            assert row.epochs is not None
            assert row.expert_flops_share is not None
            assert (row.expert_flops_share == 0) == (row.family == "dense")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_of_a_folder_holds_its_rows(folder: Path) -> None:
    page = folder.with_suffix(".html").read_text()
    for row in read_rows(folder / "rows.csv"):
        assert row.run in page
        assert row.validation_loss is None or str(row.validation_loss) in page


def test_the_families_were_trained_with_the_rates_that_were_chosen() -> None:
    folder = RESULTS / "rates"
    ((name, value),) = list_choices(
        rank_trials(read_plan(folder / "sweep.yaml"), read_rows(folder / "rows.csv"))
    )
    words = list_sweep_commands()["families"]
    assert (name, value) == ("rates", words[words.index("--rates") + 1])


def test_tuned_families_have_what_the_tuning_chose() -> None:
    folder = RESULTS / "coefficients"
    choices = list_choices(rank_trials(read_plan(folder / "sweep.yaml"), read_rows(folder / "rows.csv")))
    words = list_sweep_commands()["tuned"]
    chosen = dict(pair.split("=") for pair in choices[0][1].split(","))
    given = dict(pair.split("=") for pair in words[words.index("--rates") + 1].split(","))
    assert given == {name: chosen[name] for name in given}
    overrides = {value for name, value in choices if name == "override" and "-topk" in value}
    # Equal experts have the paper's coefficient without being told.
    assert overrides == {words[words.index("--override") + 1], "equal-topk:model.moe.load_balance=0.01"}
