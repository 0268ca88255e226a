"""The table of a sweep: one row for each run and each budget at which it was measured, as exact CSV. No torch."""

import csv
import dataclasses
import io
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.config.counts import count_activated_parameters, count_training_flops, estimate_activated_width
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.expert_shares import measure_expert_shares
from hmoe.runs.run_logs import read_run_logs
from hmoe.runs.summary import RunSummary, select_due_rows, summarize_logs
from hmoe.runs.validations import Validation, read_validation
from hmoe.storage import write_atomic

ROWS = "rows.csv"
FINISHED = "finished"
CLOCKS = ("seconds", "machine", "commit")  # columns that differ between equal sweeps


@dataclass(frozen=True)
class SweepRow:
    """What is kept of a run at one budget; enough to compare and to go on without its folder.

    Attributes:
        run: its name.
        group, family, size, seed: of its plan.
        recipe: hash of its recipe, see `hmoe.sweep.runs.hash_recipe`.
        status: `finished`, or why it is not.
        budget: training FLOPs at which it was measured; None: at its end.
        step, tokens, flops: up to there.
        validation_loss: nats per token of held-out text.
        validation_bits_per_byte: of the same text.
        validation_tokens: that were predicted.
        mean_activated_width: hidden units of routed experts that a token activated per MoE layer; None: dense.
        experts_per_token: mean over steps; None: dense.
        narrow_share_begin, narrow_share_end: of the choices of experts, those of experts narrower than the mean, in the
            first and the last tenth of the steps; None: dense, or all are equal.
        idle_share_end: share of the experts that got less than a tenth of a uniform share in the last tenth; None:
            dense.
        activated_parameters: of a token, mean over the training.
        total_parameters: of the model.
        expert_flops_share: share of the training FLOPs that routed experts spent; 0: dense.
        epochs: passes over the training tokens.
        data: fingerprint of the data.
        packing: how the data was cut into sequences.
        seconds: training time, beside whatever else the machine did.
        machine: name of the processor or the GPU, and threads.
        commit: of the code.
    """

    run: str
    group: str
    family: str
    size: str
    seed: int
    recipe: str
    status: str
    budget: float | None = None
    step: int | None = None
    tokens: int | None = None
    flops: int | None = None
    validation_loss: float | None = None
    validation_bits_per_byte: float | None = None
    validation_tokens: int | None = None
    mean_activated_width: float | None = None
    experts_per_token: float | None = None
    narrow_share_begin: float | None = None
    narrow_share_end: float | None = None
    idle_share_end: float | None = None
    activated_parameters: float | None = None
    total_parameters: int | None = None
    expert_flops_share: float | None = None
    epochs: float | None = None
    data: str | None = None
    packing: str | None = None
    seconds: float | None = None
    machine: str | None = None
    commit: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run reached its budget."""
        return self.status == FINISHED


_TYPES = typing.get_type_hints(SweepRow)
_COLUMNS = [field.name for field in dataclasses.fields(SweepRow)]
_LATER = {
    "narrow_share_begin",
    "narrow_share_end",
    "idle_share_end",
}  # which tables of an earlier version lack


def dump_rows(rows: Iterable[SweepRow]) -> str:
    """Return rows as CSV with exact numbers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        values = (getattr(row, name) for name in _COLUMNS)
        writer.writerow(
            ["" if value is None else repr(value) if isinstance(value, float) else value for value in values]
        )
    return file.getvalue()


def write_rows(path: Path, rows: Iterable[SweepRow]) -> None:
    """Replace a table of rows in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dump_rows(rows).encode())


def read_rows(path: Path) -> list[SweepRow]:
    """Read a table of rows; without the file there are none. Columns that an earlier version did not know are empty.

    Raises:
        ConfigError: naming the line and the column that are none of a sweep's.
    """
    if not path.exists():
        return []
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    head = lines[0] if lines else []
    if not set(_COLUMNS) - _LATER <= set(head) <= set(_COLUMNS) or len(set(head)) < len(head):
        raise ConfigError(f"{path}: its first line must be {','.join(_COLUMNS)}")
    return [_parse_row(path, line_number, head, line) for line_number, line in enumerate(lines[1:], 2)]


def _parse_row(path: Path, line_number: int, head: Sequence[str], line: Sequence[str]) -> SweepRow:
    if len(line) != len(head):
        raise ConfigError(f"{path}:{line_number}: has {len(line)} values, must have {len(head)}")
    values: dict[str, Any] = {}
    for name, text in zip(head, line, strict=True):
        options = typing.get_args(_TYPES[name]) or (_TYPES[name],)
        kind = next(option for option in options if option is not type(None))
        try:
            values[name] = None if text == "" and type(None) in options else kind(text)
        except ValueError:
            raise ConfigError(f"{path}:{line_number}: {name} = {text!r}, must be a number") from None
    return SweepRow(**values)


def make_rows(
    template: SweepRow, run: Path, config: RunConfig, budgets: Sequence[float], train_tokens: int
) -> list[SweepRow]:
    """Return the rows of a run that reached its budget.

    Args:
        template: holds what the plan and the machine say of the run.
        run: its folder.
        config: its recipe.
        budgets: training FLOPs at which it was validated on its way; none: its end alone.
        train_tokens: tokens of the training split.
    """
    logs = read_run_logs(run)
    validated = [row for row in logs.rows if read_validation(row) is not None]
    rows: list[SweepRow] = []
    points: list[float | None] = [*sorted(budgets)] or [None]
    for budget in points:
        reached = validated if budget is None else [row for row in validated if row["flops"] >= budget]
        if not reached:
            raise ConfigError(
                f"{run}: was not validated at its {'end' if budget is None else f'{budget:g} FLOPs'}"
            )
        step = reached[-1 if budget is None else 0]["step"]
        _check_measured(run, config, logs.rows, budget, step)
        if rows and rows[-1].step == step:
            raise ConfigError(f"{run}: {rows[-1].budget:g} and {budget:g} FLOPs fall into one step, {step}")
        summary = summarize_logs(run, logs, step)
        row = _fill_row(template, summary, config, budget, train_tokens)
        rows.append(_add_shares(row, logs.config, [each for each in logs.rows if each["step"] <= step]))
    return rows


def _check_measured(
    run: Path, config: RunConfig, logged: Sequence[dict[str, Any]], budget: float | None, step: int
) -> None:
    """Raise ConfigError if a run had reached a budget before the step at which it was validated for it."""
    before = [row for row in logged if row["step"] < step]
    if not before:
        return
    last = before[-1]
    share = config.train.measure_progress(last["step"], last["tokens"], last["flops"], 0.0)
    if (last["flops"] >= budget) if budget is not None else share >= 1:
        what = "its end" if budget is None else f"{budget:g} FLOPs"
        raise ConfigError(f"{run}: was validated at step {step} only, after {what} had been reached")


def _fill_row(
    template: SweepRow, summary: RunSummary, config: RunConfig, budget: float | None, train_tokens: int
) -> SweepRow:
    validation = summary.last_validation
    assert validation is not None
    idle = count_training_flops(config.model, config.data.sequence_length, summary.tokens, 0)
    return dataclasses.replace(
        template,
        status=FINISHED,
        budget=budget,
        step=summary.step,
        tokens=summary.tokens,
        flops=summary.flops,
        validation_loss=validation.loss,
        validation_bits_per_byte=validation.bits_per_byte,
        validation_tokens=validation.tokens,
        mean_activated_width=summary.mean_width,
        experts_per_token=summary.experts_per_token,
        activated_parameters=count_activated_parameters(config.model, summary.mean_width or 0.0),
        total_parameters=summary.total_parameters,
        expert_flops_share=1 - idle / summary.flops if config.model.moe else 0.0,
        epochs=summary.tokens / train_tokens,
        data=summary.data,
        packing=summary.packing,
        seconds=summary.seconds,
    )


def _add_shares(row: SweepRow, config: RunConfig, logged: Sequence[dict[str, Any]]) -> SweepRow:
    """Return a row with what the logged steps tell of its experts, by the config of the run: widths may be measured."""
    shares = (
        None
        if config.model.moe is None
        else measure_expert_shares(config.model.moe, select_due_rows(config, logged))
    )
    if shares is None:
        return row
    return dataclasses.replace(
        row,
        narrow_share_begin=shares.narrow_begin,
        narrow_share_end=shares.narrow_end,
        idle_share_end=shares.idle_end,
    )


def make_summary(row: SweepRow, config: RunConfig, path: Path) -> RunSummary:
    """Return what a row says of a finished run as its folder would; `path` stands for the folder."""
    assert row.step is not None
    assert row.tokens is not None
    assert row.flops is not None
    assert row.validation_loss is not None
    assert row.validation_bits_per_byte is not None
    validation = Validation(
        row.step, row.validation_loss, row.validation_bits_per_byte, row.validation_tokens
    )
    return RunSummary(
        path=path,
        config=config,
        step=row.step,
        tokens=row.tokens,
        flops=row.flops,
        validations=(validation,),
        mean_width=row.mean_activated_width,
        uniform_width=estimate_activated_width(config.model)[1] if config.model.moe else None,
        experts_per_token=row.experts_per_token,
        seconds=row.seconds,
        data=row.data,
        packing=row.packing,
    )
