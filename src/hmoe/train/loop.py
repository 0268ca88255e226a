"""Training, on one page: step until the budget is reached, evaluate, save, say so."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.data.batches import MicroBatch
from hmoe.data.open import open_data
from hmoe.errors import NonFiniteError
from hmoe.parallel.heartbeat import HEARTBEAT
from hmoe.runs.log_rows import read_logs, read_training_seconds
from hmoe.runs.log_seals import describe_log_change
from hmoe.runs.run_folder import RunFolder
from hmoe.runs.summary import read_run_summary
from hmoe.train.compiled import explain_failure
from hmoe.train.console import Console
from hmoe.train.evaluations import validate, write_sample
from hmoe.train.feed import Feed, OwnParts
from hmoe.train.heap import keep_freed_memory
from hmoe.train.kept_state import Restored, load_restart
from hmoe.train.offloaded import describe_moves
from hmoe.train.probe import cut_back_probes, write_probe
from hmoe.train.processes import Processes, choose_process
from hmoe.train.rebuild import move_at_checkpoint
from hmoe.train.session import RunCounts, Session, measure_progress, open_session
from hmoe.train.step import StepRecord, train_step
from hmoe.train.stop import STOP

MAX_BAD_STEPS = 5  # non-finite steps in a row that end the run


def train_run(
    config: RunConfig, folder: RunFolder, console: Console, processes: Processes | None = None
) -> None:
    """Train until a budget is reached or a signal asks to stop; then the folder has a checkpoint of the step.

    Args:
        config: of the run.
        folder: locked by this process, or by the first of several.
        console: says what happens; of several processes that of the first.
        processes: that train together, all of which call this; None: one.

    Raises:
        NonFiniteError: after MAX_BAD_STEPS steps in a row whose loss or gradients were not finite.
        DataError, CheckpointError, ConfigError: naming what cannot be used.
    """
    processes = processes or choose_process(config.parallel.exact)
    restored = load_restart(folder.path, processes, console.warn)
    if restored is not None:
        # Before the session opens: a finished run reads neither its weights nor, most often, its data.
        with processes.together():
            config = folder.check_config(config, restored.state, console.warn)
            check_processes(config, processes.size)
        seconds = processes.broadcast(read_training_seconds(folder.path, restored.step))
        if measure_progress(config, RunCounts(**restored.state["counts"]), seconds) >= 1:
            with processes.together():
                _end_finished(config, folder, restored, console)
            return
    keep_freed_memory()
    session, first = open_session(config, folder, restored, console, processes), -1
    if restored is not None:  # let go of: its files may be removed while the run goes on
        first, restored = restored.step, None
    with processes.together():
        folder.write_config(session.config)  # not before the data is known to be the run's
        if processes.rank == 0:
            cut_back_probes(session)
    with contextlib.closing(session.records):
        counts = session.counts
        console.start(session.config, session.device, counts.tokens == 0, processes.size)
        rows = _read_rows(folder, counts.step) if processes.rank == 0 else []
        console.data(session.index, session.batches, counts.tokens, rows)
        own = OwnParts(session.batches, processes.rank, processes.size)
        with contextlib.closing(Feed(own, session.device)) as feed, _abandoning(session):
            _steps(session, feed, console, saved=first)
        if processes.rank > 0:
            return  # the first one tells
        if session.offload is not None:
            console.note(describe_moves(session.offload, counts.step - max(first, 0)))
        is_finished = session.progress() >= 1
        name = STOP.signal_name or "a signal to another process"
        reason = "finished" if is_finished else f"stopped by {name}, the same command continues"
        console.end(read_run_summary(folder.path), reason, is_finished)


@contextlib.contextmanager
def _abandoning(session: Session) -> Iterator[None]:
    """End what is being saved before the folder is given up, if training ends with an error; let go of experts."""
    try:
        yield
    except BaseException:
        session.saver.abandon()
        raise
    finally:
        if session.offload is not None:
            session.offload.close()


def _end_finished(config: RunConfig, folder: RunFolder, restored: Restored, console: Console) -> None:
    """Say that a run has used up its budget already."""
    if folder.leads_elsewhere(config):
        open_data(config, restored.state["data"], restored.state["tokenizer"])
    folder.write_config(config)
    _check_logs(folder, restored.step, console)
    console.end(read_run_summary(folder.path), "finished already")


def _read_rows(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl up to a step."""
    return [row for _, row in read_logs(folder.path, step)[0]]


def _check_logs(folder: RunFolder, step: int, console: Console) -> None:
    """Warn if the logs of a finished run are not those that were written."""
    problem = describe_log_change(folder.path, step)
    if problem is not None:
        console.warn(f"{problem}; the checkpoint does not depend on them")


def _steps(session: Session, feed: Feed, console: Console, saved: int) -> None:
    """Take steps until the budget is used up or a signal came; `saved` is the step saved last or -1."""
    config, counts, every = session.config, session.counts, session.config.train
    HEARTBEAT.reach(counts.step)
    stops = session.agree(STOP)
    while not stops and session.progress() < 1:
        session.records.begin()
        parts = feed.take(counts.step)
        record = _take_step(session, parts)
        session.records.tick(record.tokens)
        stops = session.agree(STOP)
        row = _metrics_row(session, record, _account(session, record))
        if session.mover is not None and (moved := session.mover.take_step(record, counts.step)):
            console.note(moved)
        HEARTBEAT.reach(counts.step)
        done = session.progress() >= 1
        evaluated = _evaluate(session, row, record)
        if (
            done
            or _due(counts.step, every.log_every)
            or row.keys() & {"warnings", "validation_loss", "sample"}
        ):
            session.records.write(row)
        console.row(row, session.records, session.progress())
        # After the row, so that the log tells of it; before a checkpoint, which would hold nothing new.
        if counts.bad_in_a_row >= MAX_BAD_STEPS:
            session.saver.finish()
            with session.processes.together():
                raise NonFiniteError(_explain_bad_steps(counts.step, saved, config.optim.lr))
        if done or _due(counts.step, every.save_every) or session.wants_checkpoint:
            saved = session.save()
            if not done and (moved := move_at_checkpoint(session)):
                console.note(moved)
        if evaluated or saved == counts.step:  # which may have taken longer than a step
            stops = session.agree(STOP) or stops
    if saved != counts.step:  # a signal came between two checkpoints
        session.save()
    session.saver.finish()


def _take_step(session: Session, parts: Sequence[MicroBatch[Any]]) -> StepRecord:
    with explain_failure(session.config):
        return train_step(
            session.model, session.optimizer, parts, session.config, session.counts.step, session.processes,
            session.offload,
        )  # fmt: skip


def _evaluate(session: Session, row: dict[str, Any], record: StepRecord) -> bool:
    """Do what is due with the model after a step, put it into the step's row, and return whether anything was."""
    counts, every, done = session.counts, session.config.train, session.progress() >= 1
    reached = any(counts.flops - record.flops < limit <= counts.flops for limit in every.eval_flops)
    if done or reached or _due(counts.step, every.eval_every):
        row |= validate(session)
    if _due(counts.step, every.sample_every):
        row["sample"] = write_sample(session)
    if _due(counts.step, every.inspect_every) or (done and every.inspect_every):
        write_probe(session)
        return True
    return bool(row.keys() & {"validation_loss", "sample"})


def _explain_bad_steps(step: int, saved: int, lr: float) -> str:
    """Return why the run ends and what is kept; `saved` is the step of the newest checkpoint or -1."""
    # Nothing is saved here: a newer checkpoint would hold weights no better, and crowd out those to go back to.
    kept = (
        f"the newest checkpoint is that of step {saved}, from which the run folder continues"
        if saved >= 0
        else "no checkpoint was written yet"
    )
    return (
        f"step {step}: loss or gradients were NaN or infinite {MAX_BAD_STEPS} steps in a row; {kept}; "
        f"see the data, or begin another run with a lower optim.lr (now {lr})"
    )


def _account(session: Session, record: StepRecord) -> list[str]:
    """Add a step to what the run counts; return warnings, a line each."""
    counts, moe = session.counts, session.config.model.moe
    counts.step += 1
    counts.tokens += record.tokens
    counts.flops += record.flops
    counts.skipped += not record.applied
    counts.bad_in_a_row = 0 if record.applied else counts.bad_in_a_row + 1
    # The pairs of a step that was not finite say nothing about experts.
    if not record.applied:
        return [
            f"step {counts.step}: loss or gradients not finite, update skipped ({counts.bad_in_a_row} in a row)"
        ]
    return session.watch.update(record.num_pairs_ZE, record.tokens, moe.routed_widths if moe else ())


def _metrics_row(session: Session, record: StepRecord, warnings: list[str]) -> dict[str, Any]:
    """Return one row of metrics.jsonl: deterministic values only, so that equal runs write equal bytes."""
    counts, moe = session.counts, session.config.model.moe
    row: dict[str, Any] = {"step": counts.step, "tokens": counts.tokens, "flops": counts.flops}
    row |= {name: _finite(value) for name, value in record.terms.items()}
    row |= {"grad_norm": _finite(record.grad_norm), "lr": record.lr, "skipped": counts.skipped}
    row |= {
        "activated_parameters": record.activated_parameters,
        "mean_activated_width": record.mean_activated_width,
    }
    if moe:
        work_ZE = [
            [n * h for n, h in zip(row_E, moe.routed_widths, strict=True)] for row_E in record.num_pairs_ZE
        ]
        row |= {"experts_per_token": record.experts_per_token}
        row |= {"experts_per_token_by_layer": [sum(row_E) / record.tokens for row_E in record.num_pairs_ZE]}
        row |= {"expert_token_share": _shares(record.num_pairs_ZE), "expert_compute_share": _shares(work_ZE)}
    row |= {"slots": record.slots} if record.slots else {}
    return row | ({"warnings": warnings} if warnings else {})


def _shares(table: list[list[int]]) -> list[list[float]]:
    """Return each entry as a share of its row, in as many digits as a reader compares."""
    return [[round(value / max(sum(row), 1), 6) for value in row] for row in table]


def _finite(value: float) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _due(step: int, every: int) -> bool:
    """Return whether something that is done every so many steps is due; 0: never."""
    return bool(every) and step % every == 0
