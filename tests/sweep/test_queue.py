"""The queue: real runs in processes, rows that stay, failures in the table, and going on in another checkout."""

import dataclasses
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hmoe.errors import ConfigError, RunBusyError
from hmoe.runs.control import make_uniform_control
from hmoe.sweep.folder import SweepFolder, add_seeds
from hmoe.sweep.outcome import compare_sweep
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.process import Place
from hmoe.sweep.queue import SweepQueue, SweepState
from hmoe.sweep.rows import SweepRow, read_rows, write_rows
from hmoe.sweep.runs import hash_recipe, make_run_config
from tests.sweep.helpers import CONTROL, UNEQUAL, make_plan, make_row, read_table

PLACES = (Place(0, 1), Place(1, 1))
WILD = ["optim.lr=100", "optim.clip=null", "optim.betas=[0.0, 0.0]", "train.steps=60"]
BROKEN = {
    "name": "broken",
    "recipe": "tiny",
    "overrides": [*UNEQUAL["overrides"], "model.vocab=258", "data.tokenizer=bpe:258"],
}


def run_sweep(plan: SweepPlan, path: Path, retry: bool = False) -> SweepState:
    with SweepFolder(path) as folder:
        queue = SweepQueue(folder.bind_plan(plan), folder, PLACES, "machine", "commit", retry)
        queue.run(lambda state: None)
        return queue.state


def test_a_sweep_trains_derives_controls_tells_failures_and_goes_on_from_its_table(tmp_path: Path) -> None:
    # A learning rate at which every step overflows: exit code 5 after five of them.
    wild = {**UNEQUAL, "name": "wild", "overrides": [*UNEQUAL["overrides"], *WILD]}
    groups = [UNEQUAL, wild, CONTROL, {"name": "wild-control", "control_of": "wild"}]
    plan = make_plan(groups=groups, seeds=[0], baseline="control")
    state = run_sweep(plan, tmp_path / "a")
    unequal, failed, control, orphan = state.list_rows()
    # The same words wherever and whenever it ended: a killed sweep would write them too.
    assert re.fullmatch(
        r"failed: error: step \d+: loss or gradients were NaN or infinite 5 steps in a row", failed.status
    )
    assert (unequal.run, unequal.status, unequal.step) == ("unequal-0", "finished", 4)
    assert failed.status.startswith("failed: error: step")
    assert orphan.status == "failed: its source wild-0 did not finish"
    assert read_rows(tmp_path / "a" / "rows.csv") == state.list_rows()
    # The control of the table is the one that `hmoe plan --control` makes of the run folder.
    by_folder = make_uniform_control(tmp_path / "a" / "runs" / "unequal-0")[0]
    assert hash_recipe(by_folder) == control.recipe
    assert by_folder.model.moe is not None
    assert control.mean_activated_width == 2 * by_folder.model.moe.expert_widths[0]
    assert abs(control.flops / unequal.flops - 1) < 0.02
    comparison = compare_sweep(plan, state.list_rows(), tmp_path / "a")
    assert comparison is not None
    assert [row["name"] for row in comparison.rows] == ["unequal", "control"]
    # A second seed in another checkout, which has the table alone.
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "rows.csv", tmp_path / "b")
    with SweepFolder(tmp_path / "b") as folder:
        queue = SweepQueue(folder.bind_plan(add_seeds(plan, 1)), folder, PLACES, "machine", "commit")
        assert [run.name for run in queue.state.waiting] == [f"{group.name}-1" for group in plan.groups]
        assert queue.state.list_rows() == state.list_rows()


def write_finished(plan: SweepPlan, file: Path, **changes: object) -> list[SweepRow]:
    """Write rows as finished runs of the plan would."""
    config = plan.read_recipe(plan.groups[0], 0)
    row = dataclasses.replace(make_row("unequal-0", recipe=hash_recipe(config)), **changes)  # type: ignore[arg-type]
    write_rows(file, [make_row("other-9"), row])
    return read_rows(file)


def open_queue(plan: SweepPlan, path: Path, retry: bool = False) -> SweepQueue:
    with SweepFolder(path) as folder:
        return SweepQueue(folder.bind_plan(plan), folder, PLACES, "machine", "commit", retry)


def test_rows_of_the_table_are_taken_over(tmp_path: Path) -> None:
    plan = make_plan(seeds=[0])
    other, row = write_finished(plan, tmp_path / "rows.csv")
    queue = open_queue(plan, tmp_path)
    assert queue.state.list_rows() == [row]
    assert [run.name for run in queue.state.waiting] == ["control-0"]
    control = make_run_config(plan, queue.state.waiting[0], queue.summaries)
    assert control.seed == 0
    assert other.run == "other-9"


def test_a_failed_run_stays_failed_until_it_is_retried(tmp_path: Path) -> None:
    plan = make_plan(seeds=[0])
    write_finished(plan, tmp_path / "rows.csv", status="failed: why")
    assert [run.name for run in open_queue(plan, tmp_path).state.waiting] == ["control-0"]
    assert [run.name for run in open_queue(plan, tmp_path, True).state.waiting] == ["unequal-0", "control-0"]


def test_an_unfinished_run_is_tried_again(tmp_path: Path) -> None:
    plan = make_plan(seeds=[0])
    write_finished(plan, tmp_path / "rows.csv", status="unfinished: No space left on device, 3 times")
    assert [run.name for run in open_queue(plan, tmp_path).state.waiting] == ["unequal-0", "control-0"]


def test_a_source_whose_weights_are_needed_is_trained_where_its_folder_is_not(tmp_path: Path) -> None:
    source = {**UNEQUAL, "is_source": True}
    groups = [source, {**UNEQUAL, "name": "after", "upcycled_from": "unequal"}]
    plan = make_plan(groups=groups, seeds=[0])
    write_finished(plan, tmp_path / "rows.csv")
    assert [run.name for run in open_queue(plan, tmp_path).state.waiting] == ["unequal-0", "after-0"]


def test_rows_of_another_recipe_or_of_other_data_are_refused(tmp_path: Path) -> None:
    plan = make_plan(seeds=[0, 1])
    write_finished(plan, tmp_path / "a" / "rows.csv", recipe="f" * 12)
    with pytest.raises(ConfigError, match=r"its row of unequal-0 is of another recipe \(ffffffffffff"):
        open_queue(plan, tmp_path / "a")
    write_finished(plan, tmp_path / "b" / "rows.csv", data="d" * 64)
    queue = open_queue(plan, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"fingerprint is corpus, rows of .* are of dddddddddddd"):
        queue.run(lambda state: None)


def test_a_folder_keeps_its_plan_but_for_further_seeds(tmp_path: Path) -> None:
    with SweepFolder(tmp_path) as folder:
        folder.bind_plan(make_plan(seeds=[0, 1]))
        assert folder.bind_plan(make_plan(seeds=[0, 1, 2])).seeds == (0, 1, 2)
        assert folder.bind_plan(make_plan(seeds=[0])).seeds == (0, 1, 2)
        with pytest.raises(ConfigError, match="group unequal: has another recipe"):
            folder.bind_plan(make_plan(groups=[{**UNEQUAL, "overrides": []}, CONTROL]))
        with pytest.raises(ConfigError, match="group broken: is not in"):
            folder.bind_plan(make_plan(groups=[UNEQUAL, CONTROL, BROKEN]))
        with pytest.raises(ConfigError, match=r"group control of .* is not in this sweep"):
            folder.bind_plan(make_plan(groups=[UNEQUAL]))
        with pytest.raises(ConfigError, match="baseline = control: is None in"):
            folder.bind_plan(make_plan(baseline="control"))
        with pytest.raises(RunBusyError, match="another process is running this sweep"):
            SweepFolder(tmp_path)


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds no sweep, but notes\.txt"):
        SweepFolder(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        SweepFolder(tmp_path / "notes.txt")


def test_a_child_ends_when_its_sweep_is_killed(tmp_path: Path) -> None:
    """The parent is a process that starts a child which never ends by itself, and is then killed."""
    code = (
        "import subprocess, sys, os\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1] % os.getpid()])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    watch = (
        "from hmoe.sweep.train_one import end_with_parent; import time; end_with_parent(%d); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, watch], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(1)
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_that_is_killed_ten_times_has_the_same_table(tmp_path: Path) -> None:
    import random

    words = ["tiny", "tiny-equal", "model.dim=32", "model.heads=2", "train.steps=150", "train.save_every=10"]
    words += [
        "data.batch_tokens=1024",
        "train.eval_every=0",
        "train.sample_every=0",
        "--seeds",
        "2",
        "--controls",
    ]
    command = [sys.executable, "-m", "hmoe", "sweep", "grid", *words, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    generator, kills = random.Random(0), 0
    while kills < 10:
        sweep = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        try:
            sweep.wait(generator.uniform(4, 20))
            break
        except subprocess.TimeoutExpired:
            sweep.kill() if kills % 2 else sweep.terminate()
            sweep.wait()
            kills += 1
    subprocess.run([*command, str(tmp_path / "killed")], check=True, stdout=subprocess.DEVNULL)
    assert kills >= 3
    assert read_table(tmp_path / "killed" / "rows.csv") == read_table(tmp_path / "whole" / "rows.csv")
