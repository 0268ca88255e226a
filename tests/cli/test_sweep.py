"""`hmoe sweep`: what it prints, asks for and refuses, and its page; the queue itself is tested in tests/sweep."""

import json
import shutil
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.sweep.cost import StepCost
from hmoe.sweep.folder import SweepFolder
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import write_rows
from hmoe.sweep.shipped import change_plan, read_shipped_plan
from tests.conftest import TINY
from tests.sweep.helpers import CONTROL, UNEQUAL, make_plan, make_row
from tests.sweep.test_answer import make_isoflop, make_tuning

SMALL = [*TINY, "model.moe.widths.total=64", "model.moe.widths.experts=4", "model.moe.widths.multiple=1"]


def fill_folder(path: Path, plan: SweepPlan, rows: list[object]) -> None:
    """Write a sweep folder whose runs are all finished."""
    with SweepFolder(path) as folder:
        folder.bind_plan(plan)
        write_rows(folder.rows, rows)  # type: ignore[arg-type]


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps cost a second, without one being trained."""
    monkeypatch.setattr(
        "hmoe.cli.sweep_run.measure_step_costs",
        lambda plan, groups, *rest: {name: StepCost(1.0, 1e9, 128) for name in groups},
    )


def test_a_dry_run_tells_runs_flops_and_hours(
    costs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "grid", "tiny", *SMALL, "train.steps=10", "--optim.lr", "1e-3", "--vary", "seed=1,2"]
    assert run_command_line([*words[:-2], "--vary", "optim.clip=1,2", "--seeds", "3", "--controls", "--processes", "2",
                             "--dry-run", "--json", "--out", str(tmp_path / "s")]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    cost = json.loads(out)
    assert (cost["num_runs"], cost["flops"], cost["seconds"]) == (12, 1.2e11, 60.0)
    assert "12 runs to train: 1.2e11 FLOPs, about" in err
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        ".lock"
    ]  # a corrected command is not refused


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["grid", "tinny"], "group tinny: no preset or .yaml file 'tinny'; nearest is tiny"),
        (["grid", "optim.lr=1"], "optim.lr=1: is an override; a preset or a YAML file comes first"),
        (["grid", "tiny", "--vary", "optim.lr"], "--vary optim.lr: must be KEY=A,B"),
        (["grid", "tiny", "--vary", "optim.lrr=1,2"], "optim.lrr: unknown key; nearest is optim.lr"),
        (["grid", "tiny", "--baseline", "tinny"], "baseline = tinny: must be a group; nearest is tiny"),
        (["families", "tiny-equal"], "families come from a recipe with unequal experts"),
        (["families", "tiny", "--families", "denser"], "--families denser: must be among dense"),
        (["tuning", "tiny", "--rates", "x"], "--rates x: must be numbers"),
        (["isoflop", "tiny", "--budgets", "1e9", "--sizes", "0"], "--sizes 0.0: must be above 0"),
        (["ablation", "loss", "tiny"], "ablation = loss: must be among losses"),
        (["grid", "tiny", "optim.lrr=2"], "optim.lrr: unknown key; nearest is optim.lr"),
        (["grid", "tiny", "--vary", "seed=1,2"], "seed: is set by the seeds of the sweep"),
        (["tuning", "tiny"], "--rates, --loss-factors: give one of them or both"),
        (["families", "tiny", "--override", "dense"], "--override dense: must be FAMILY:KEY=VALUE"),
        (
            ["families", "tiny", "--rates", "dense=0.1", "--override", "dense:optim.lr=1"],
            "--override dense:optim.lr=1: optim.lr of dense is given twice",
        ),
        (
            ["families", "tiny", "--override", "dense:train.flops=1"],
            "override of dense: train.flops=1: must be of",
        ),
        (
            ["families", "tiny", "--rates", "dense=0.1", "--override", "dense:--optim.lr=1"],
            "optim.lr of dense is given twice",
        ),
        (["tuning", "tiny", "--loss-factors", "1,2"], "leave it out of --families, or give --rates"),
        (
            ["families", "tiny", "--override", "dense:optim.lrr=1"],
            "group dense: optim.lrr: unknown key; nearest is",
        ),
        (
            ["families", "tiny", "--rates", "unequal-tokp=0.5"],
            "rate or override of unequal-tokp: must be of a family among",
        ),
        (
            ["run", "neighbour"],
            "neighbour: neither a .yaml file, nor a folder with sweep.yaml, nor a plan that is shipped; "
            "nearest is neighbours, of hyper, hyper-flops, neighbours, rectify",
        ),
        (["run", "hyper", "seed=1"], "seed: is set by the seeds of the sweep"),
        (["run", "hyper", "optim.lrr=1"], "group tiny: optim.lrr: unknown key; nearest is optim.lr"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["sweep", *words, "--out", str(tmp_path / "s")]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_finished_sweep_is_told_from_its_table_and_makes_a_page(
    costs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hmoe.sweep.runs import hash_recipe

    plan = make_plan(seeds=[0, 1], baseline="control")
    rows = []
    for seed in plan.seeds:
        recipe = hash_recipe(plan.read_recipe(plan.groups[0], seed))
        rows.append(make_row(f"unequal-{seed}", 4.9 + 0.01 * seed, recipe=recipe))
        rows.append(make_row(f"control-{seed}", 5.0, mean_activated_width=32.0))
    fill_folder(tmp_path, plan, rows)
    # The recipes of controls follow from the rows of their sources: written as the queue would.
    from hmoe.sweep.outcome import summarize_rows

    summaries = summarize_rows(plan, rows, tmp_path)
    rows = [
        row if row.group == "unequal" else make_row(row.run, 5.0, mean_activated_width=32.0,
                                                    recipe=hash_recipe(summaries[row.run].config))
        for row in rows
    ]  # fmt: skip
    write_rows(tmp_path / "rows.csv", rows)
    assert run_command_line(["sweep", "run", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "unequal" in out
    assert "2 seeds can show" in " ".join(out.split())
    page = tmp_path / "page.html"
    assert run_command_line(["report", str(tmp_path), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Every run" in text
    assert "control-1" in text
    assert run_command_line(["sweep", "run", str(tmp_path), "--dry-run"]) == 0
    assert "nothing is left to train" in capsys.readouterr().err
    # With seeds to add there is something left; without training them, the folder keeps its own.
    assert run_command_line(["sweep", "run", str(tmp_path), "--add", "2", "--dry-run"]) == 0
    assert "4 runs to train, 4 done" in capsys.readouterr().err
    assert "seeds:\n- 0\n- 1\n" in (tmp_path / "sweep.yaml").read_text()
    # A baseline without a finished run is no reason for having no page, nor is a control without its source's row.
    write_rows(tmp_path / "rows.csv", [row for row in rows if row.group == "unequal"])
    assert run_command_line(["report", str(tmp_path), "--out", str(page)]) == 0
    write_rows(tmp_path / "rows.csv", [row for row in rows if row.group == "control"])
    assert run_command_line(["sweep", "run", str(tmp_path), "--dry-run"]) == 0
    assert "4 runs to train" in capsys.readouterr().err
    write_rows(tmp_path / "rows.csv", [rows[0], rows[0], *rows[1:]])
    assert run_command_line(["sweep", "run", str(tmp_path)]) == 2
    assert "its rows of unequal-0 are not one for each budget" in capsys.readouterr().err


def test_speed_controls_and_chosen_widths_stand_below_the_table_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoe.sweep.queue.check_rows", lambda *_: None)
    equal = {**UNEQUAL, "name": "equal"}
    plan = make_plan(groups=[equal, UNEQUAL, CONTROL], seeds=list(range(4)), baseline="equal")
    rows = []
    for seed in plan.seeds:
        loss, end = 5.0 + 0.01 * (-1) ** seed, 0.7 + 0.01 * seed
        rows += [
            make_row(f"equal-{seed}", loss, seconds=100.0, idle_share_end=0.5),
            make_row(f"unequal-{seed}", loss + 0.02 + 0.001 * seed, seconds=125.0 + seed,
                     narrow_share_begin=0.5, narrow_share_end=end, idle_share_end=0.0),
            make_row(f"control-{seed}", loss + 0.001 * seed, seconds=100.0 + seed, idle_share_end=0.0),
        ]  # fmt: skip
    fill_folder(tmp_path, plan, rows)
    sentences = [
        "unequal beside its control control: +0.0",
        "unequal: 0.790",
        "times the tokens per second of equal, slower",
        "unequal: experts narrower than the mean took 71.5% (",
        "equal: 50% of its experts idle at the end",
    ]
    assert run_command_line(["sweep", "run", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert run_command_line(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for sentence in sentences:
        assert sentence in out
        assert sentence in page
    assert "Speed of training by group (HMoE table 2)" in page
    assert "the baseline" in page
    assert "random routing" not in page


def test_fits_and_learning_rates_are_told_and_make_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rows are of no recipe: nothing is compared with them here.
    monkeypatch.setattr("hmoe.sweep.queue.check_rows", lambda *_: None)
    fill_folder(tmp_path / "iso", *make_isoflop(-0.05))  # type: ignore[arg-type]
    assert run_command_line(["sweep", "run", str(tmp_path / "iso")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "unequal-topk at 3.0e13 FLOPs is worth" in out
    assert "worth more" in out
    assert run_command_line(["report", str(tmp_path / "iso"), "--out", str(tmp_path / "iso.html")]) == 0
    text = (tmp_path / "iso.html").read_text()
    assert "Compute-optimal models" in text
    assert "extrapolated" in out
    assert "Efficiency leverage over equal-topk" in text
    assert (
        run_command_line(
            ["report", str(tmp_path / "iso"), "--baseline", "x", "--out", str(tmp_path / "x.html")]
        )
        == 2
    )

    rows = [make_row(f"{family},lr={rate}-0", 5 + rate) for family in ("a", "b") for rate in (0.001, 0.002)]
    fill_folder(tmp_path / "rates", make_tuning().model_copy(update={"seeds": (0,)}), [
        *rows, *(make_row(f"{group.name}-0", status="failed: x") for group in make_tuning().groups
                 if group.name not in {row.group for row in rows})])  # fmt: skip
    capsys.readouterr()
    assert run_command_line(["sweep", "run", str(tmp_path / "rates")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--rates a=0.001,b=0.001" in out
    assert "a 0.001 5.0010 0.0000 yes" in out

    # Of a folder that can only be read the table is printed, but nothing is added.
    (tmp_path / "rates" / ".lock").unlink()
    (tmp_path / "rates" / ".lock").mkdir()
    assert run_command_line(["sweep", "run", str(tmp_path / "rates")]) == 0
    assert "a 0.001 5.0010 0.0000 yes" in " ".join(capsys.readouterr().out.split())
    assert run_command_line(["sweep", "run", str(tmp_path / "rates"), "--add", "1"]) == 2
    assert "cannot be written: Is a directory" in capsys.readouterr().err
    assert run_command_line(["report", str(tmp_path / "rates"), "--out", str(tmp_path / "rates.html")]) == 0
    assert "Validation loss by setting" in (tmp_path / "rates.html").read_text()


def test_what_fits_leave_out_is_told_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoe.sweep.queue.check_rows", lambda *_: None)
    plan, rows = make_isoflop(0.0)
    for name, steps in (("some", 130), ("all", 10**9)):
        changed = plan.model_copy(update={"overrides": (f"optim.warmup_steps={steps}",)})
        fill_folder(tmp_path / name, changed, rows)  # type: ignore[arg-type]
    words = "measurements, at which the warm-up was not over (equal-topk,x"
    assert run_command_line(["sweep", "run", str(tmp_path / "some")]) == 0
    assert f"Not in the fits: 4 of 64 {words}" in " ".join(capsys.readouterr().out.split())
    assert run_command_line(["sweep", "run", str(tmp_path / "some"), "--json"]) == 0
    assert any(words in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert run_command_line(["report", str(tmp_path / "some"), "--out", str(tmp_path / "x.html")]) == 0
    assert f"Not in the fits: 4 of 64 {words}" in (tmp_path / "x.html").read_text()

    capsys.readouterr()
    assert run_command_line(["sweep", "run", str(tmp_path / "all")]) == 0
    assert f"hmoe: Not in the fits: 64 of 64 {words}" in capsys.readouterr().err
    assert run_command_line(["sweep", "run", str(tmp_path / "all"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 3  # and both families have no fit
    assert run_command_line(["report", str(tmp_path / "all"), "--out", str(tmp_path / "y.html")]) == 0
    assert f"Not in the fits: 64 of 64 {words}" in (tmp_path / "y.html").read_text()


def test_a_sweep_folder_is_moved_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_folder(tmp_path / "a", make_plan(seeds=[0]), [make_row("unequal-0", status="failed: x"),
                                                       make_row("control-0", status="failed: y")])  # fmt: skip
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert run_command_line(["sweep", "run", str(tmp_path / "b")]) == 0
    assert "unequal-0: failed: x" in capsys.readouterr().err
    assert run_command_line(["sweep", "run", str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 2
    assert "has no effect with a sweep folder" in capsys.readouterr().err


def test_a_shipped_plan_is_run_by_its_name(
    costs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--seeds", "2", "train.steps=3", "--optim.lr", "1e-2", "--processes", "1", "--dry-run", "--json"]
    for name, num_runs in (("neighbours", 28), ("rectify", 14)):
        assert run_command_line(["sweep", "run", name, *words, "--out", name]) == 0
        cost = json.loads(capsys.readouterr().out)
        assert (cost["num_runs"], cost["flops"]) == (num_runs, num_runs * 3e9)


def test_a_sweep_of_a_shipped_plan_goes_on(
    costs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "sweep",
        "run",
        "hyper",
        "train.steps=3",
        "--seeds",
        "2",
        "--processes",
        "1",
        "--dry-run",
        "--json",
    ]
    assert run_command_line(words) == 2
    assert "--out: missing, a new sweep needs a folder" in capsys.readouterr().err
    # The same command goes on, also where the folder has the name of the plan.
    fill_folder(tmp_path / "hyper", change_plan(read_shipped_plan("hyper"), ["train.steps=3"], [0, 1]), [])
    assert run_command_line([*words, "--out", "hyper"]) == 0
    assert json.loads(capsys.readouterr().out)["num_runs"] == 4
    for extra, line in (
        (["train.steps=4"], "train.steps=4: the recipes of a sweep folder, hyper, are fixed; remove it"),
        (["--seeds", "3"], "--seeds 3: a sweep folder, hyper, has its seeds; --add adds to them"),
    ):
        assert run_command_line(["sweep", "run", "hyper", *extra, "--dry-run"]) == 2
        assert line in capsys.readouterr().err
