"""What a run folder says of its training, as plain numbers. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import read_newest_state
from hmoe.config.counts import (
    count_activated_parameters,
    count_parameters,
    count_training_flops,
    estimate_activated_width,
)
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.config_binding import CONFIG, is_run_folder, load_run_recipe
from hmoe.runs.log_rows import read_logs, read_training_seconds
from hmoe.runs.log_seals import check_seals

BITS = "validation_bits_per_byte"
NATS = "validation_loss"


@dataclass(frozen=True)
class RunSummary:
    """A run, summed up at its newest checkpoint, or at its last row where it has none yet.

    Attributes:
        path: the run folder.
        config: its recipe.
        step: training steps.
        tokens: trained on.
        flops: training FLOPs of the experts really activated.
        validation: (step, nats per token, bits per byte) of every validation, in order.
        mean_width: hidden units that a token activated per MoE layer, mean over the whole training; None: dense.
        uniform_width: the same under a uniform router.
        experts_per_token: mean over the logged steps; None: dense.
        seconds: training time.
        data: fingerprint of the data, None before training.
        warnings: what is amiss with the folder though it can be read.
    """

    path: Path
    config: RunConfig
    step: int
    tokens: int
    flops: int
    validation: tuple[tuple[int, float, float], ...]
    mean_width: float | None
    uniform_width: float | None
    experts_per_token: float | None
    seconds: float
    data: str | None
    warnings: tuple[str, ...]

    @property
    def bits_per_byte(self) -> float | None:
        """Of the newest validation; None where there was none at the last step."""
        return self.validation[-1][2] if self.validation and self.validation[-1][0] == self.step else None

    @property
    def nats_per_token(self) -> float | None:
        """Of the newest validation; None where there was none at the last step."""
        return self.validation[-1][1] if self.validation and self.validation[-1][0] == self.step else None

    @property
    def best_validation(self) -> tuple[int, float, float] | None:
        """The validation of the smallest loss, of equal ones the earliest; None where there was none."""
        return min(self.validation, key=lambda values: values[1], default=None)

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
        return self.config.train.measure_progress(self.step, self.tokens, self.flops, self.seconds)


def read_run_summary(run: Path) -> RunSummary:
    """Read the logs and the recipe of a run folder; neither weights nor data are read.

    Raises:
        ConfigError: if it is no run folder.
        CheckpointError: naming a damaged line of a log.
    """
    if not is_run_folder(run):
        raise ConfigError(f"{run}: not a run folder, it has no {CONFIG}; `hmoe train RECIPE` makes one")
    warnings: list[str] = []
    state = read_newest_state(run)
    config = load_run_recipe(run, (), warnings.append)
    # Rows behind the newest checkpoint are of weights that are lost.
    step = state["step"] if state else None
    metrics, timing = read_logs(run, step)
    problem = check_seals(run, metrics, timing)[1]
    warnings += [problem] if problem else []
    rows = [row for _, row in metrics]
    last = rows[-1] if rows else {"step": 0, "tokens": 0, "flops": 0}
    if step and last["step"] != step and config.train.log_every == 1:
        warnings.append(
            f"{run}: its logs end at step {last['step']}, its newest checkpoint is of step {step}"
        )
    validation = tuple((row["step"], row[NATS], row[BITS]) for row in rows if BITS in row)
    return RunSummary(
        path=run,
        config=config,
        step=last["step"],
        tokens=last["tokens"],
        flops=last["flops"],
        validation=validation,
        mean_width=_measure_mean_width(config, rows) if rows else None,
        uniform_width=estimate_activated_width(config.model)[1] if config.model.moe else None,
        experts_per_token=_average(rows, "experts_per_token"),
        seconds=read_training_seconds(run, last["step"]) if timing else 0.0,
        data=state["data"] if state else None,
        warnings=tuple(warnings),
    )


def _measure_mean_width(config: RunConfig, rows: list[dict[str, Any]]) -> float | None:
    """Return the hidden units that a token activated per MoE layer, mean over all steps; None: dense."""
    model, last = config.model, rows[-1]
    if model.moe is None:
        return None
    if model.moe.hyper is not None:  # making HyperExperts is part of the FLOPs, and not known by step
        return _average(rows, "mean_activated_width")
    # From the exact FLOPs, which also count the steps that have no row.
    fixed = count_training_flops(model, config.data.sequence_length, last["tokens"], 0)
    return float((last["flops"] - fixed) / (18 * model.dim * len(model.moe_layers) * last["tokens"]))


def _average(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None
