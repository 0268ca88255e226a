"""`python -m hmoe.sweep.train_one`: one run of a sweep in a process of its own, which ends when the sweep does."""

import contextlib
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hmoe.config.recipes import check_recipe
from hmoe.config.run import RunConfig
from hmoe.errors import HMoEError, RunBusyError
from hmoe.runs.run_folder import RunFolder
from hmoe.storage import lock_file
from hmoe.sweep.process import BUSY_CODE
from hmoe.train.stop import STOP

_PARENT_SECONDS = 0.5  # between looks whether the sweep still runs
_WARM_STEPS, _MOST_STEPS, _MEASURE_SECONDS = 2, 10, 10.0  # of a measurement
_BUSY_SECONDS = 120.0  # that a process of a sweep which was killed may take to save and end


def end_with_parent(parent: int) -> None:
    """Ask this process to save and end as soon as its parent is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        if not STOP:  # a second signal would end it before it has saved
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def open_when_free(run: Path, config: RunConfig) -> RunFolder:
    """Lock a run folder; wait for a process that is about to leave it."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return RunFolder(run, config)
        except RunBusyError:
            if STOP or time.monotonic() > deadline:
                raise
            time.sleep(_PARENT_SECONDS)


def wait_until_free(run: Path) -> None:
    """Wait for a process that is about to leave a run folder, at most as long as `open_when_free`."""
    if not (run / ".lock").is_file():
        return
    deadline = time.monotonic() + _BUSY_SECONDS
    with (run / ".lock").open("a+") as lock:
        while not lock_file(lock) and not STOP and time.monotonic() < deadline:
            time.sleep(_PARENT_SECONDS)


def train_planned_run(
    config: RunConfig, run: Path, source: Path | None, measured_widths: bool = False
) -> None:
    """Train a run until its budget is reached.

    Args:
        config: recipe of the plan.
        run: the run folder.
        source: finished run whose weights it begins with, or None.
        measured_widths: the widths of its experts follow from those weights.
    """
    from hmoe.checkpoint.manifest import list_checkpoint_steps  # noqa: PLC0415 - torch, after the signals are ours
    from hmoe.sweep.begin_upcycled import begin_upcycled, measure_recipe  # noqa: PLC0415
    from hmoe.train.console import Console  # noqa: PLC0415
    from hmoe.train.loop import train_run  # noqa: PLC0415

    if source is not None and measured_widths:
        # A process of a killed sweep may still be writing the widths that the run then has.
        wait_until_free(run)
        config = measure_recipe(config, run, source)
    with open_when_free(run, config) as folder:
        if source is not None and not list_checkpoint_steps(run):
            begin_upcycled(config, folder, source)
        train_run(config, folder, Console())


def measure_steps(config: RunConfig) -> dict[str, float]:
    """Return the median seconds of a training step, and its FLOPs, after a few that warm up."""
    import tempfile  # noqa: PLC0415

    from hmoe.train.console import Console, SilentDisplay  # noqa: PLC0415
    from hmoe.train.feed import Feed  # noqa: PLC0415
    from hmoe.train.processes import choose_process  # noqa: PLC0415
    from hmoe.train.session import open_session  # noqa: PLC0415
    from hmoe.train.step import train_step  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as path, RunFolder(Path(path), config) as folder:
        process = choose_process(config.parallel.exact)
        session = open_session(config, folder, None, Console(SilentDisplay()), process)
        seconds, flops, deadline = [], 0, time.monotonic() + _MEASURE_SECONDS
        with (
            contextlib.closing(session.records),
            contextlib.closing(Feed(session.batches, session.device)) as feed,
            contextlib.closing(session.offload) if session.offload is not None else contextlib.nullcontext(),
        ):
            for step in range(_WARM_STEPS + _MOST_STEPS):
                parts, begin = feed.take(step), time.perf_counter()
                flops = train_step(
                    session.model, session.optimizer, parts, session.config, step, process, session.offload
                ).flops
                seconds.append(time.perf_counter() - begin)
                if STOP:
                    raise SystemExit(1)
                if len(seconds) > _WARM_STEPS and time.monotonic() > deadline:
                    break
    timed = seconds[_WARM_STEPS:]
    error = (
        statistics.stdev(timed) / math.sqrt(len(timed)) / statistics.fmean(timed) if len(timed) > 1 else 0.0
    )
    return {
        "seconds": statistics.median(timed),
        "flops": flops,
        "total_seconds": sum(seconds),
        "relative_error": error,
    }


def answer_request(request: dict[str, Any]) -> int:
    """Train what a request asks for; return the exit code."""
    STOP.install()
    end_with_parent(request["parent"])
    try:
        if "measure" in request:
            print(json.dumps(measure_steps(check_recipe(request["measure"]))))
            return 0
        config = check_recipe(request["config"])
        source = None if request["source"] is None else Path(request["source"])
        train_planned_run(config, Path(request["run"]), source, request["measured_widths"])
    except HMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY_CODE if isinstance(error, RunBusyError) else error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(answer_request(json.loads(sys.stdin.read())))
