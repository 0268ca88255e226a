"""Runs that begin with the weights of another run of the sweep: which may, that they do, and after a kill."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.data.batches import Batches
from hmoe.data.open import open_data
from hmoe.errors import ConfigError
from hmoe.runs.open_model import open_model
from hmoe.runs.summary import read_run_summary
from hmoe.storage import lock_file
from hmoe.surgery.measure import choose_measured_widths, measure_unit_importance, record_ffn_inputs
from hmoe.sweep.folder import SweepFolder
from hmoe.sweep.plan import check_plan
from hmoe.sweep.process import Place, RunSource
from hmoe.sweep.queue import SweepQueue
from hmoe.sweep.rows import make_rows, write_rows
from hmoe.sweep.runs import hash_recipe
from hmoe.sweep.train_one import train_planned_run, wait_until_free
from tests.conftest import TINY
from tests.sweep.helpers import make_row

DENSE = [*TINY, "model.ffn=16", "train.eval_every=0", "train.sample_every=0"]
EXPERTS = ["model.moe.widths={shape: equal, total: 64, experts: 4}", "model.moe.dense_layers=[0]"]
SOURCE = {
    "name": "source",
    "recipe": "tiny-dense",
    "is_source": True,
    "overrides": [*DENSE, "train.steps=2"],
}
MORE = {
    "name": "more",
    "recipe": "tiny-dense",
    "upcycled_from": "source",
    "overrides": [*DENSE, "train.steps=3"],
}
MIXED = {
    "name": "mixed",
    "recipe": "tiny-equal",
    "upcycled_from": "source",
    "overrides": [*DENSE, *EXPERTS, "train.steps=2"],
}
MEASURED = {
    "name": "measured",
    "recipe": "tiny-equal",
    "upcycled_from": "mixed",
    "measured_widths": True,
    "overrides": [*MIXED["overrides"], "model.moe.widths.total=48"],
}
PLAN = check_plan({"groups": [SOURCE, MORE, MIXED]}, "plan")


class Killed(BaseException):
    """Ends a training as a kill does: nothing catches it."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "source-0"
    train_planned_run(PLAN.read_recipe(PLAN.groups[0], 0), run, None)
    return run


def kill(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def end(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(place, end)


def load(run: Path) -> Any:
    return open_model(run, print).model


@pytest.mark.parametrize("group", PLAN.groups[1:], ids=lambda group: group.name)
@pytest.mark.parametrize(
    "place", ["hmoe.train.loop.train_run", "hmoe.runs.run_folder.RunFolder.write_config"]
)
def test_a_run_begins_with_the_weights_of_its_source_and_goes_on_after_a_kill(
    group: Any, place: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PLAN.read_recipe(group, 0)
    with monkeypatch.context() as patch:
        kill(patch, place)
        with pytest.raises(Killed):
            train_planned_run(config, tmp_path / "killed", source)
    assert list_checkpoint_steps(tmp_path / "killed") == [0]
    if place.endswith("train_run"):
        old, new = load(source), load(tmp_path / "killed")
        assert torch.equal(new.embed.weight, old.embed.weight)
        assert torch.equal(new.blocks[0].ffn.w_down, old.blocks[0].ffn.w_down)
        tokens = torch.arange(24)[None] % 300
        assert (new(tokens)[0] - old(tokens)[0]).abs().max() < 1e-5  # copies, whose gates sum to 1
    train_planned_run(config, tmp_path / "killed", source)
    train_planned_run(config, tmp_path / "whole", source)
    killed, whole = (load(tmp_path / name).state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert rows[0] == rows[1]
    assert rows[0].count("\n") == config.train.steps


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["model.dim=64"], "group mixed: model.dim = 64: must be 32, that of its source, source"),
        (["model.ffn=24"], "group mixed: model.ffn = 24: must be 16, that of its source, source"),
    ],
)
def test_a_group_that_would_begin_at_random_is_refused(change: list[str], line: str) -> None:
    mixed = {**MIXED, "overrides": [*MIXED["overrides"], *change]}
    with pytest.raises(ConfigError, match=line):
        check_plan({"groups": [SOURCE, mixed]}, "plan")
    dense = {**MORE, "upcycled_from": "mixed"}
    with pytest.raises(
        ConfigError, match=r"group more: model\.moe = None: experts cannot become dense again"
    ):
        check_plan({"groups": [SOURCE, MIXED, dense]}, "plan")
    alone = {**MIXED, "overrides": [*MIXED["overrides"], "model.moe.dense_layers=[]", "model.ffn=null"]}
    assert check_plan({"groups": [SOURCE, alone]}, "plan")


def test_measured_widths_share_the_recipe_s_total_by_the_importance_of_the_source_s_units(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = check_plan({"groups": [SOURCE, MIXED, MEASURED]}, "plan")
    mixed, config = (plan.read_recipe(group, 0) for group in plan.groups[1:])
    train_planned_run(mixed, tmp_path / "mixed", source)
    with torch.no_grad():
        opened = open_model(tmp_path / "mixed", print)
        # One expert of four becomes three times as wide in effect, one hardly matters.
        layer = opened.model.blocks[1].ffn
        scale_F1 = torch.tensor([1.0, 3.0, 0.01, 1.0]).repeat_interleave(16)[:, None]
        layer.w_down.mul_(scale_F1)
    monkeypatch.setattr("hmoe.sweep.begin_upcycled.open_model", lambda *_: opened)
    monkeypatch.setattr("hmoe.sweep.begin_upcycled.MEASURED_TOKENS", 512)
    batches = Batches(open_data(config), config.data, 0)
    tokens_BL = torch.cat([torch.as_tensor(batches[step][0]) for step in range(4)])  # 512 of them
    inputs = record_ffn_inputs(opened.model.eval(), [tokens_BL])
    widths = choose_measured_widths([measure_unit_importance(layer, inputs[1])], 48, 8)
    assert sum(widths) == 48
    assert len(set(widths)) > 1
    with monkeypatch.context() as patch:
        kill(patch, "hmoe.train.loop.train_run")
        with pytest.raises(Killed):
            train_planned_run(config, tmp_path / "killed", tmp_path / "mixed", True)
    monkeypatch.setattr(
        "hmoe.sweep.begin_upcycled.measure_widths", lambda *_: (8, 8, 8, 40)
    )  # another thread count
    train_planned_run(config, tmp_path / "killed", tmp_path / "mixed", True)
    summary = read_run_summary(tmp_path / "killed")
    assert summary.config.model.moe is not None
    assert (summary.config.model.moe.expert_widths, summary.progress) == (widths, 1)
    # Its row tells the shares of experts that are narrow in the run, not in the plan, where all are equal.
    (row,) = make_rows(make_row("measured-0"), tmp_path / "killed", config, (), 1000)
    narrow = [width < 12 for width in widths]
    logged = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    (shares,) = logged[0]["expert_token_share"]
    assert row.narrow_share_begin == pytest.approx(
        sum(s for s, own in zip(shares, narrow, strict=True) if own)
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"upcycled_from": None}, "measured_widths has no effect without upcycled_from; remove it"),
        (
            {"upcycled_from": "source"},
            r"measured_widths: has 4 experts in layers \[1\], its source 0 in \[\]",
        ),
    ],
)
def test_measured_widths_need_a_source_with_as_many_experts(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check_plan({"groups": [SOURCE, MIXED, {**MEASURED, **change}]}, "plan")


def open_queue(path: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> SweepQueue:
    """Return a queue whose children end at once, of a table in which the source is finished."""

    class Child:
        def __init__(self, config: Any, run: Path, log: Path, place: Place, source: RunSource | None) -> None:
            started.append((run.name, source))
            self.config, self.run, self.place = config, run, place

        def poll(self) -> int:
            return 2

        def read_progress(self) -> tuple[float, None]:
            return 0.0, None

        def read_last_line(self) -> str:
            return "error: none"

    monkeypatch.setattr("hmoe.sweep.queue.RunProcess", Child)
    monkeypatch.setattr("hmoe.sweep.queue._POLL_SECONDS", 0)
    recipe = hash_recipe(PLAN.read_recipe(PLAN.groups[0], 0))
    write_rows(path / "rows.csv", [make_row("source-0", recipe=recipe, mean_activated_width=None)])
    with SweepFolder(path) as folder:
        return SweepQueue(folder.bind_plan(PLAN), folder, [Place(0, 1)], "machine", "commit")


def test_the_queue_hands_the_source_of_the_same_seed_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    folder = tmp_path / "runs" / "source-0"
    shutil.copytree(source, folder)
    queue = open_queue(tmp_path, started, monkeypatch)
    queue.run(lambda state: None)
    assert started == [(name, RunSource(folder, False)) for name in ("more-0", "mixed-0")]
    assert [row.status.partition(":")[0] for row in queue.state.list_rows()] == [
        "finished",
        "failed",
        "failed",
    ]


def test_a_source_whose_weights_are_not_at_hand_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    (tmp_path / "runs" / "source-0").mkdir(parents=True)
    (tmp_path / "runs" / "source-0" / "config.yaml").write_text("base: tiny\n")  # without a checkpoint
    queue = open_queue(tmp_path, started, monkeypatch)
    queue.run(lambda state: None)
    assert started == [("source-0", None)]
    assert (
        queue.state.rows["more-0"][0].status.removeprefix("failed: ") == "its source source-0 did not finish"
    )


def test_a_run_whose_widths_are_measured_waits_for_a_process_that_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until_free(tmp_path)  # no run yet
    sleeps: list[float] = []
    with (tmp_path / ".lock").open("a+") as lock:
        assert lock_file(lock)

        def leave(seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) == 2:
                lock.close()

        monkeypatch.setattr("hmoe.sweep.train_one.time.sleep", leave)
        wait_until_free(tmp_path)
    assert len(sleeps) == 2
    with (tmp_path / ".lock").open("a+") as lock:
        assert lock_file(lock)  # it holds none
