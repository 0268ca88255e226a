"""What a run writes while it runs: metrics.jsonl (deterministic), timing.jsonl (clocks), TensorBoard."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hmoe.runs.log_rows import METRICS, TIMING, Row, read_training_seconds
from hmoe.runs.log_seals import LogSeal, check_seals
from hmoe.train.log_file import LogFile

_SMOOTHING = 0.9  # of tokens per second


class Records:
    """The logs of a run, cut back to the step at which it goes on.

    Attributes:
        seconds: training time, of the steps before and from here on.
        tokens_per_second: of training steps alone, smoothed; 0 before the first.

    `say` is told of rows that were changed or lost.
    """

    def __init__(self, folder: Path, step: int, log_every: int, say: Callable[[str], None]) -> None:
        self._metrics, self._timing = LogFile(folder / METRICS), LogFile(folder / TIMING)
        metrics, timing = self._metrics.cut_back(step), self._timing.cut_back(step)
        self._seal = _checked_seal(folder, metrics, timing, (step, log_every), say)
        self.seconds = read_training_seconds(folder, step)
        self.tokens_per_second = 0.0
        self._last = self._begun = time.perf_counter()
        self._timed_step = step
        self._board = _tensorboard(folder / "tensorboard", step)

    def begin(self) -> None:
        """Start the clock of a step: tokens per second are those of steps alone."""
        self._begun = time.perf_counter()

    def tick(self, tokens: int) -> None:
        """Stop the clock of a step of `tokens`; `seconds` also counts what happened since the one before."""
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now
        rate = tokens / max(now - self._begun, 1e-9)
        smooth = _SMOOTHING if self.tokens_per_second else 0.0
        self.tokens_per_second = smooth * self.tokens_per_second + (1 - smooth) * rate

    def write(self, row: dict[str, Any]) -> None:
        """Append one row to each log."""
        self._seal.add_metrics(self._metrics.write(row))
        timing = self._write_timing(row["step"])
        if self._board is not None:
            for name, value in _scalars({**row, **timing}):
                self._board.add_scalar(name, value, row["step"])

    def flush(self, step: int) -> None:
        """Make all rows durable before the checkpoint of `step` relies on them."""
        # This step must have a row even if none was due, so that a budget in seconds survives a resume.
        if self._timed_step != step:
            self._write_timing(step)
        self._metrics.flush()
        self._timing.flush()

    def _write_timing(self, step: int) -> dict[str, Any]:
        self._timed_step = step
        timing = {"step": step, "seconds": self.seconds, "tokens_per_second": self.tokens_per_second}
        self._timing.write(self._seal.sealed(timing))
        return timing

    def close(self) -> None:
        """Close all files; no more rows are written."""
        for log in (self._metrics, self._timing, self._board):
            if log is not None:
                log.close()


class NoRecords:
    """Stands for the logs in a process that does not write them."""

    seconds = tokens_per_second = 0.0

    def begin(self) -> None:
        """Do nothing."""

    def tick(self, tokens: int) -> None:
        """Do nothing: the clock is that of the process that writes."""

    def write(self, row: dict[str, Any]) -> None:
        """Write nothing."""

    def flush(self, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _checked_seal(
    folder: Path, metrics: list[Row], timing: list[Row], restored: tuple[int, int], say: Callable[[str], None]
) -> LogSeal:
    """Return the seal to go on with, after saying what is wrong with the rows up to the restored step."""
    step, log_every = restored
    seal, problem = check_seals(folder, metrics, timing)
    timed = timing[-1][1]["step"] if timing else 0
    if timed != step:  # the row of a saved step is always written
        lost = f"the seconds since step {timed} are not counted"
        say(f"{folder / TIMING}: its row of step {step} is missing; {lost}")
    if not any("seal" in row for _, row in timing):  # nothing says how many rows there were
        due, steps = range(log_every, step + 1, log_every), {row["step"] for _, row in metrics}
        missing = sum(each not in steps for each in due)
        if missing:
            rule = f"train.log_every = {log_every}"
            problem = f"{folder / METRICS}: {missing} of {len(due)} rows are missing that {rule} writes"
    if problem is not None:
        say(f"{problem}; training goes on from the checkpoint, which does not depend on them")
    return seal


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row by name; those per layer and expert as name/layer/expert."""
    for name, value in row.items():
        if isinstance(value, int | float):
            yield name, value
        elif name.startswith("expert_"):
            for layer, shares in enumerate(value):
                for expert, share in enumerate(shares):
                    yield f"{name}/layer{layer}/expert{expert}", share


def _tensorboard(folder: Path, step: int) -> Any:
    """Return TensorBoard's writer where the [track] extra is installed, else None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional extra, slow to import

    return SummaryWriter(str(folder), purge_step=step + 1)
