"""Run benchmark tasks of lm-evaluation-harness: those of a `hmoe data benchmarks` folder, or its own."""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError, HMoEError, PeerError
from hmoe.evaluate.chance import measure_chance, measure_group_chance
from hmoe.evaluate.precision import EvaluationPrecision
from hmoe.evaluate.read_counts import ReadCounts
from hmoe.evaluate.results_folder import ResultsFolder
from hmoe.evaluate.summary import describe_activation, summarize_results
from hmoe.evaluate.tasks import TaskSelection, select_tasks, silence_harness
from hmoe.model.transformer import Transformer
from hmoe.parallel.workers import ONE_WORKER, Workers
from hmoe.runs.step_metrics import read_step_metrics
from hmoe.specs.losses import list_loss_keys
from hmoe.specs.plain import to_plain

_BATCH_TOKENS = 4096
_SEED = 1234  # the harness's own, for the examples of few-shot prompts, which it draws


@dataclass(frozen=True)
class EvaluationOptions:
    """How tasks are evaluated.

    Attributes:
        limit: number of documents of each task, from the first on; None: all.
        num_fewshot: number of examples before each question; None: as the task says, 0 in most.
        precision: float32 or bfloat16; None: that of the weights.
        batch_tokens: tokens of one forward pass; does not change what is computed.
        begin: tokens before every text; see `hmoe.data.tokenizer.get_begin_tokens`.
        workers: processes that share each task; the first one alone writes results.

    Raises:
        ConfigError: for values out of range.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    precision: str | None = None
    batch_tokens: int = _BATCH_TOKENS
    begin: tuple[int, ...] = ()
    workers: Workers = ONE_WORKER

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "num_fewshot": 0, "batch_tokens": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value}, must be at least {least}", argument=name)


@dataclass(frozen=True)
class ModelInfo:
    """What a result says of the model that was evaluated.

    Attributes:
        name: label of its row in the table.
        training: `step`, `tokens` and `flops` of its training, where they are known.
    """

    name: str = "model"
    training: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reports:
    """What to call while tasks are evaluated.

    Attributes:
        say: called with a line for the user.
        progress: called with (task, sequences done, sequences in all).
    """

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda task, done, total: None


def evaluate_tasks(
    model: Transformer,
    tokenizer: Tokenizer,
    context_length: int,
    tasks: Sequence[str] | TaskSelection,
    benchmarks: Path | None = None,
    options: EvaluationOptions = EvaluationOptions(),
    about: ModelInfo = ModelInfo(),
    out: Path | None = None,
    reports: Reports = Reports(),
) -> dict[str, Any]:
    """Evaluate tasks and sum them up as JSON values, which `hmoe.cli.results_table` lays out as Table 1.

    Args:
        model: the model, in evaluation mode; precision float32 changes its weights to that.
        tokenizer: the model's tokenizer.
        context_length: tokens read at once.
        tasks: names, or what `select_tasks` made of them.
        benchmarks: folder of `hmoe data benchmarks`; None: every task is the harness's own, from the hub.
        options: how to evaluate.
        about: what the result says of the model.
        out: folder for the results of each finished task, which is not evaluated again.
        reports: called while tasks are evaluated.

    Raises:
        ConfigError: see `select_tasks`; also if `out` holds results of another model or of other options.
        DataError: if a task cannot be read.
    """
    selection = tasks if isinstance(tasks, TaskSelection) else select_tasks(tasks, benchmarks, reports.say)
    from hmoe.evaluate.language_model import LanguageModel  # noqa: PLC0415 - optional extra, tested by select

    lm = LanguageModel(
        model, tokenizer, context_length, options.batch_tokens, options.precision, options.begin,
        workers=options.workers,
    )  # fmt: skip
    settings = _settings(options, context_length, EvaluationPrecision(model, options.precision).name)
    workers = options.workers
    writes = workers.rank == 0
    model_fingerprint = (
        fingerprint_model(model, tokenizer) if out and writes else None
    )  # it reads every weight
    with workers.together():
        results = ResultsFolder(out, {"model": model_fingerprint, **settings}) if out and writes else None
    records = _evaluate_all(lm, selection, options, results, reports)
    head = {
        "name": about.name,
        "fingerprint": model_fingerprint,
        **_training_fields(about),
        "options": settings,
    }
    if results:
        results.close(summarize_results(head, results.all(), model.config))
    return summarize_results(head, records, model.config)


def _evaluate_all(
    lm: Any,
    selection: TaskSelection,
    options: EvaluationOptions,
    results: ResultsFolder | None,
    reports: Reports,
) -> dict[str, dict[str, Any]]:
    """Evaluate the tasks that are not finished yet, one after another, and return the records of all."""
    records, workers = {}, options.workers
    for name in selection.names:
        with workers.together():
            loaded = results.load(name, selection.digest(name)) if results else None
        record = workers.gather_values(loaded)[0]
        if record is not None:
            if results:
                reports.say(f"{name}: finished before, in {results.folder}; not evaluated again")
        else:
            lm.report = functools.partial(reports.progress, name)
            record = evaluate_task(lm, selection, name, options)
            with workers.together():
                if results:
                    results.save(name, record)
        records[name] = record
    return records


def _settings(options: EvaluationOptions, context_length: int, precision: str) -> dict[str, Any]:
    """Return what must be equal for results to go together; `batch_tokens` changes none."""
    return {
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "precision": precision,
        "context_length": context_length,
        "begin": list(options.begin) or None,
    }


def fingerprint_model(model: Transformer, tokenizer: Tokenizer) -> str:
    """Return a SHA-256 of what decides a model's answers: architecture, every weight, tokenizer."""
    moe = model.config.moe
    # Context and loss coefficients change no answer; `widths` may be a rule, so what it gives is hashed.
    shape = {name: value for name, value in to_plain(model.config).items() if name != "context"}
    if moe is not None:
        shape["moe"] = {
            name: value for name, value in shape["moe"].items() if name not in ("widths", *list_loss_keys())
        }
    digest = hashlib.sha256(json.dumps([shape, moe and moe.expert_widths]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(tokenizer.fingerprint.encode())
    return digest.hexdigest()


def read_training_record(run: Path, step: int | None) -> dict[str, float]:
    """Read `step`, `tokens` and `flops` of a run folder at a step; {} where its metrics.jsonl has none."""
    row = read_step_metrics(run, step)
    return {name: row[name] for name in ("step", "tokens", "flops") if name in row}


def _training_fields(about: ModelInfo) -> dict[str, Any]:
    return {f"training_{name}": about.training.get(name) for name in ("step", "tokens", "flops")}


def evaluate_task(lm: Any, selection: TaskSelection, name: str, options: EvaluationOptions) -> dict[str, Any]:
    """Evaluate one task, or a group of the harness's, and return its record; `lm.measured` counts what was read.

    Raises:
        ConfigError, DataError: if the task cannot be read, or not by this model.
    """
    from lm_eval import evaluator  # noqa: PLC0415 - optional extra

    lm.measured = ReadCounts()
    random.seed(0)  # the harness's own command seeds both, and some tasks draw from them
    np.random.seed(_SEED)
    with silence_harness():
        loaded = selection.load(name)
        for task in loaded["tasks"].values():
            _set_fewshot(name, task, options.num_fewshot)
        try:
            scores = evaluator.evaluate(lm=lm, task_dict=loaded, limit=options.limit, log_samples=False)[
                "results"
            ]
        except PeerError:
            raise
        except HMoEError as error:  # of the model, which does not know the task
            raise type(error)(f"{name}: {error}", argument=error.arguments) from None
        except ValueError as error:  # the harness's own checks, such as a task that runs code
            raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None
    metrics = {task: _clean_metrics(row) for task, row in scores.items()}
    return {**_make_record(selection, name, loaded["tasks"], metrics), **_count_activated(lm)}


def _make_record(
    selection: TaskSelection, name: str, tasks: dict[str, Any], metrics: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return what is recorded of a task besides what its tokens activated.

    Args:
        selection: where the task comes from.
        name: name of the task or group.
        tasks: the harness's task objects by their names, several for a group.
        metrics: metrics of the task, and of a group's members.
    """
    from lm_eval import __version__  # noqa: PLC0415 - optional extra

    local = selection.local(name)
    harness_name = local.local if local else name
    record: dict[str, Any] = {
        "task": name,
        "source": "folder" if local else "harness",
        "harness": __version__,
        "data": selection.digest(name),
        "metrics": metrics.get(harness_name, {}),
        "documents": sum(len({request.doc_id for request in task.instances}) for task in tasks.values()),
        "requests": sum(len(task.instances) for task in tasks.values()),
        **(measure_chance(tasks[harness_name]) if harness_name in tasks else measure_group_chance(tasks)),
    }
    if subtasks := {task: row for task, row in metrics.items() if task != harness_name}:
        record["subtasks"] = subtasks
    return record


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    """Set the number of examples as the harness's own command does; refuse one that has no effect."""
    default = task.get_config("num_fewshot")
    if num_fewshot is not None and default == 0 and num_fewshot != 0:
        raise ConfigError(f"num_fewshot = {num_fewshot} has no effect on {name}: its task file fixes 0")
    if num_fewshot is not None or default is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=_SEED)


def _clean_metrics(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers among the harness's metrics, with `acc,none` named `acc`."""
    numbers = {
        key.removesuffix(",none"): value for key, value in row.items() if isinstance(value, int | float)
    }
    return {key: float(value) for key, value in numbers.items() if not key.startswith("sample_")}


def _count_activated(lm: Any) -> dict[str, Any]:
    """Return what the tokens of a task activated; the paper's Table 3 is `activated_ratio`."""
    counts = lm.measured
    return {
        "tokens": counts.tokens,
        "truncated_requests": counts.truncated,
        "windowed_requests": counts.windowed,
        "activated_units": counts.units,
        **describe_activation(lm.model.config, counts.tokens, counts.units),
    }
