"""One run of a sweep as a child process, and what can be seen of it from outside. No torch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError, DataError, NonFiniteError
from hmoe.runs.log_rows import read_newest_row
from hmoe.runs.summary import read_run_summary

# Exit codes of errors that come again: of the recipe, the data and numbers that are not finite.
FINAL_CODES = (ConfigError.exit_code, DataError.exit_code, NonFiniteError.exit_code)
BUSY_CODE = 75  # the run folder is in use: try again


@dataclass(frozen=True)
class Place:
    """Where a child computes.

    Attributes:
        index: of the place among those of the sweep.
        threads: of the child on a CPU.
        gpu: as CUDA_VISIBLE_DEVICES names it; None: the CPU.
    """

    index: int
    threads: int
    gpu: str | None = None

    def make_environment(self) -> dict[str, str]:
        """Return the variables by which a child keeps to this place."""
        threads = str(self.threads)
        own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **own, **({} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu})}


def start_child(request: Mapping[str, Any], place: Place, stdout: Any) -> "subprocess.Popen[bytes]":
    """Start a process that does what `hmoe.sweep.train_one` is asked for, and ends with this one."""
    # In a session of its own: an interrupt on the terminal reaches the sweep alone, which tells its children.
    child = subprocess.Popen(
        [sys.executable, "-m", "hmoe.sweep.train_one"],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=place.make_environment(),
        start_new_session=True,
    )
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps({**request, "parent": os.getpid()}).encode())
        child.stdin.close()
    except BrokenPipeError:
        pass  # it ended at once, which its exit code tells
    child.stdin = None
    return child


@dataclass(frozen=True)
class RunSource:
    """What a run begins with instead of random weights.

    Attributes:
        run: folder of a finished run.
        measured_widths: the widths of its experts follow from those weights.
    """

    run: Path
    measured_widths: bool


class RunProcess:
    """A child that trains one run.

    Args:
        config: the recipe.
        run: the run folder.
        log: file to which it appends what it says.
        place: where it computes.
        source: what it begins with, or None.
    """

    def __init__(
        self, config: RunConfig, run: Path, log: Path, place: Place, source: RunSource | None
    ) -> None:
        self.config, self.run, self.log, self.place = config, run, log, place
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "config": config.model_dump(mode="json"),
            "run": str(run),
            "source": None if source is None else str(source.run),
            "measured_widths": source is not None and source.measured_widths,
        }
        with log.open("ab") as file:
            self._child = start_child(request, place, stdout=file)

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._child.poll()

    def stop(self) -> None:
        """Ask it to save and end."""
        if self.poll() is None:
            self._child.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended; after so many seconds end it at once."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def is_finished(self) -> bool:
        """Return whether its budget is used up, by its whole logs."""
        return read_run_summary(self.run).progress >= 1

    def read_last_line(self) -> str:
        """Return the last line that it said."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1].strip() if lines else "it said nothing"

    def read_progress(self) -> tuple[float, float | None]:
        """Return the share of the budget that is used up, and the newest loss; (0, None) before the first row."""
        row = read_newest_row(self.run)
        if not row:
            return 0.0, None
        share = self.config.train.measure_progress(row["step"], row["tokens"], row["flops"], 0.0)
        return min(share, 1.0), row.get("loss")
