"""The live table of a sweep: shares of runs, those that were resumed too, and the time that is left."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from hmoe.cli.sweep_display import SweepDisplay
from hmoe.sweep.queue import SweepState
from hmoe.sweep.runs import list_planned_runs
from tests.sweep.helpers import make_plan, make_row


def make_child(share: float) -> Any:
    return SimpleNamespace(read_progress=lambda: (share, 5.0))


def test_the_time_left_counts_what_this_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    state = SweepState(list_planned_runs(make_plan(seeds=[0, 1])), {"unequal-0": [make_row("unequal-0")]})
    display = SweepDisplay()
    state.running = {"control-0": make_child(0.5)}  # resumed: half of it was done before
    assert display._describe(state) == "1 of 4 runs"
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    state.running = {"control-0": make_child(0.75)}
    # A quarter of a run took a minute; two runs and a quarter are left.
    assert display._describe(state) == "1 of 4 runs, ETA 9m00s"
    state.running = {"unequal-1": make_child(0.0)}
    state.rows["control-0"] = [make_row("control-0", status="failed: x")]
    state.ended = ["control-0"]
    assert display._describe(state) == "2 of 4 runs, 1 failed, ETA 4m00s"


def test_without_a_terminal_a_line_tells_each_run_that_ended(capsys: pytest.CaptureFixture[str]) -> None:
    state = SweepState(list_planned_runs(make_plan(seeds=[0])), {})
    with SweepDisplay() as display:
        display.show(state)
        state.rows = {
            "unequal-0": [make_row("unequal-0", 4.5)],
            "control-0": [make_row("control-0", status="failed: why")],
        }
        state.ended = ["unequal-0", "control-0"]
        display.show(state)
        display.show(state)
    assert capsys.readouterr().err.splitlines() == [
        "hmoe: 1 of 2: unequal-0: validation loss 4.5000 after 4 steps, 1s",
        "hmoe: 2 of 2: control-0: failed: why",
    ]
