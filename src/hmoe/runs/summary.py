"""What a run folder says of its training, as plain numbers. No torch."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.config.counts import (
    count_activated_parameters,
    count_parameters,
    estimate_activated_width,
    measure_activated_width,
)
from hmoe.config.run import RunConfig
from hmoe.runs.run_logs import RunLogs, read_run_logs
from hmoe.runs.validations import Validation, read_validation


@dataclass(frozen=True)
class RunSummary:
    """A run, summed up at its newest checkpoint, or at its last row where it has none yet.

    Attributes:
        path: the run folder.
        config: its recipe.
        step: training steps.
        tokens: trained on.
        flops: training FLOPs of the experts really activated.
        validations: every one up to there, in order.
        mean_width: hidden units that a token activated per MoE layer, mean over the whole training; None: dense.
        uniform_width: the same under a uniform router.
        experts_per_token: mean over the steps that `train.log_every` logs; None: dense.
        seconds: training time; None where no clock was kept.
        data: the data's fingerprint, `corpus` for the embedded one; None where only a path is known.
        packing: how the data was cut into sequences; None where there is no checkpoint.
        warnings: what is amiss with the folder though it can be read.
    """

    path: Path
    config: RunConfig
    step: int
    tokens: int
    flops: int
    validations: tuple[Validation, ...] = ()
    mean_width: float | None = None
    uniform_width: float | None = None
    experts_per_token: float | None = None
    seconds: float | None = None
    data: str | None = None
    packing: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def last_validation(self) -> Validation | None:
        """The validation at the last step; None where there was none then."""
        return self.validations[-1] if self.validations and self.validations[-1].step == self.step else None

    @property
    def best_validation(self) -> Validation | None:
        """The one of the smallest loss among those of the newest one's text, of equal ones the earliest; None: none."""
        same = [
            validation for validation in self.validations if validation.tokens == self.validations[-1].tokens
        ]
        return min(same, key=lambda validation: validation.loss, default=None)

    @property
    def total_parameters(self) -> int:
        """Of the model, both embeddings included."""
        return sum(count_parameters(self.config.model).values())

    @property
    def activated_parameters(self) -> float:
        """Parameters that a token used, mean over the whole training."""
        return count_activated_parameters(self.config.model, self.mean_width or 0.0)

    @property
    def progress(self) -> float:
        """Share of the recipe's budget that is used up, of several the largest."""
        return self.config.train.measure_progress(self.step, self.tokens, self.flops, self.seconds or 0.0)


def read_run_summary(run: Path) -> RunSummary:
    """Read the logs and the recipe of a run folder; neither weights nor data are read.

    Raises:
        ConfigError: if it is no run folder.
        CheckpointError: naming a damaged line of a log.
    """
    return summarize_logs(run, read_run_logs(run))


def summarize_logs(run: Path, logs: RunLogs, step: int | None = None) -> RunSummary:
    """Sum up the logs of a run at its newest checkpoint, or as they were at an earlier step that has a row."""
    config, state, rows, timing = logs.config, logs.state, logs.rows, logs.timing
    warnings = list(logs.warnings)
    if step is not None:
        rows, timing = ([row for row in log if row["step"] <= step] for log in (rows, timing))
    # The last step has a row only where one was due.
    last = (
        state["counts"]
        if state and step is None
        else rows[-1]
        if rows
        else {"step": 0, "tokens": 0, "flops": 0}
    )
    if state and config.train.log_every == 1 and last["step"] != (rows[-1]["step"] if rows else 0):
        warnings.append(f"{run}: its logs do not reach its newest checkpoint, of step {last['step']}")
    clocks = [row["seconds"] for row in timing if "seconds" in row]
    return RunSummary(
        path=run,
        config=config,
        step=last["step"],
        tokens=last["tokens"],
        flops=last["flops"],
        validations=tuple(validation for row in rows if (validation := read_validation(row))),
        mean_width=_measure_mean_width(config, last["tokens"], last["flops"], rows),
        uniform_width=estimate_activated_width(config.model)[1] if config.model.moe else None,
        experts_per_token=average_known(
            row.get("experts_per_token") for row in select_due_rows(config, rows)
        ),
        seconds=clocks[-1] if clocks else None,
        data="corpus" if config.data.path == "corpus" else state["data"] if state else None,
        packing=state.get("packing") if state else None,
        warnings=tuple(warnings),
    )


def _measure_mean_width(
    config: RunConfig, tokens: int, flops: int, rows: list[dict[str, Any]]
) -> float | None:
    """Return the hidden units that a token activated per MoE layer, mean over all steps; None: dense, or no step."""
    if config.model.moe is None or tokens == 0:
        return None
    if config.model.moe.hyper is not None:  # making HyperExperts is part of the FLOPs, and not known by step
        return average_known(row.get("mean_activated_width") for row in select_due_rows(config, rows))
    # From the exact FLOPs, which also count the steps that have no row.
    return measure_activated_width(config.model, config.data.sequence_length, tokens, flops)


def select_due_rows(config: RunConfig, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the rows of every `train.log_every`-th step, which a mean is taken over.

    Steps with a validation, a sample or a warning have rows too, and would count more than others. All rows where none
    is due.
    """
    return [row for row in rows if row["step"] % config.train.log_every == 0] or rows


def average_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that there are, None without any; where all are equal that value, unrounded."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if min(known) == max(known) else statistics.fmean(known)
