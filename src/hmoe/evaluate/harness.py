"""Benchmark tasks of lm-evaluation-harness on a model: from a folder of `hmoe data benchmarks`, or the harness's own."""

import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError, HMoEError
from hmoe.evaluate.precision import Precision
from hmoe.evaluate.results_folder import Outcome
from hmoe.evaluate.table import activated, summary
from hmoe.evaluate.tasks import Selection, quiet, select
from hmoe.model.transformer import Transformer
from hmoe.runs.metrics import metrics_at
from hmoe.specs.losses import list_loss_keys
from hmoe.specs.plain import to_plain

_BATCH_TOKENS = 4096
_SEED = 1234  # the harness's own, for what it draws: examples of few-shot prompts


@dataclass(frozen=True)
class Options:
    """How tasks are evaluated.

    Attributes:
        limit: documents of each task, from the first on; None: all.
        num_fewshot: examples before each question; None: as the task says, 0 in most.
        precision: float32 or bfloat16; None: that of the weights.
        batch_tokens: tokens of one forward pass; does not change what is computed.
        begin: tokens before every text; see `hmoe.data.tokenizer.begin_tokens`.

    Raises:
        ConfigError: for values out of range.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    precision: str | None = None
    batch_tokens: int = _BATCH_TOKENS
    begin: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value, least in (("limit", self.limit, 1), ("num_fewshot", self.num_fewshot, 0),
                                   ("batch_tokens", self.batch_tokens, 1)):  # fmt: skip
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value}, must be at least {least}")


@dataclass(frozen=True)
class About:
    """What the result says of the model: its name, and of its training `step`, `tokens` and `flops` where known."""

    name: str = "model"
    training: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reports:
    """Who is told what happens: `say` a line, `progress` (task, sequences done, sequences)."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda task, done, total: None


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    context_length: int,
    tasks: Sequence[str] | Selection,
    benchmarks: Path | None = None,
    options: Options = Options(),
    about: About = About(),
    out: Path | None = None,
    reports: Reports = Reports(),
) -> dict[str, Any]:
    """Evaluate tasks and sum them up, as JSON values; `hmoe.evaluate.table.table` prints them like the paper's Table 1.

    Args:
        model: in evaluation mode; precision float32 changes its weights to that.
        tokenizer: its own.
        context_length: tokens read at once.
        tasks: names, or what `select` made of them.
        benchmarks: folder of `hmoe data benchmarks`; without it every task is the harness's own, from the hub.
        options: how.
        about: what the result says of the model.
        out: folder for the results. Each finished task is written there; finished ones are not evaluated again.
        reports: who is told what happens.

    Raises:
        ConfigError: see `select`; also if `out` holds results of another model or of other options.
        DataError: if a task cannot be read.
    """
    selection = tasks if isinstance(tasks, Selection) else select(tasks, benchmarks, reports.say)
    from hmoe.evaluate.language_model import LanguageModel  # noqa: PLC0415 - optional extra, tested by select

    lm = LanguageModel(model, tokenizer, context_length, options.batch_tokens, options.precision, options.begin)
    precision = Precision(model, options.precision).name
    asked: dict[str, Any] = {"limit": options.limit, "num_fewshot": options.num_fewshot, "precision": precision}
    asked |= {"context_length": context_length, "begin": list(options.begin) or None}
    print_of_model = fingerprint(model, tokenizer) if out else None
    outcome = Outcome(out, {"model": print_of_model, **asked}) if out else None
    records = {}
    for name in selection.names:
        record = outcome.load(name, selection.digest(name)) if outcome else None
        if record is not None:
            reports.say(f"{name}: finished before, in {out}; not evaluated again")
        else:
            lm.report = functools.partial(reports.progress, name)
            record = _run(lm, selection, name, options)
            if outcome:
                outcome.save(name, record)
        records[name] = record
    head = {"name": about.name, "fingerprint": print_of_model, **_training(about), "options": asked}
    result = summary(head, records, model.config)
    if outcome:
        outcome.close(summary(head, outcome.all(), model.config))
    return result


def fingerprint(model: Transformer, tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides a model's answers: architecture, every weight, tokenizer."""
    moe = model.config.moe
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


def training_record(run: Path, step: int | None) -> dict[str, float]:
    """`step`, `tokens` and `flops` of a run folder at a step, from its metrics.jsonl; {} where it has none."""
    row = metrics_at(run, step)
    return {name: row[name] for name in ("step", "tokens", "flops") if name in row}


def _training(about: About) -> dict[str, Any]:
    return {f"training_{name}": about.training.get(name) for name in ("step", "tokens", "flops")}


def _run(lm: Any, selection: Selection, name: str, options: Options) -> dict[str, Any]:
    """Evaluate one task (or a group of the harness's)."""
    from lm_eval import __version__, evaluator  # noqa: PLC0415 - optional extra

    from hmoe.evaluate.language_model import Measured  # noqa: PLC0415

    lm.measured = Measured()
    random.seed(0)
    np.random.seed(_SEED)
    with quiet():
        loaded = selection.load(name)
        for task in loaded["tasks"].values():
            _set_fewshot(name, task, options.num_fewshot)
        try:
            found = evaluator.evaluate(lm=lm, task_dict=loaded, limit=options.limit, log_samples=False)
        except HMoEError as error:
            raise type(error)(f"{name}: {error}") from None
        except ValueError as error:  # the harness's own checks, such as a task that runs code
            raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None
    local = selection.local(name)
    metrics = {task: _metrics(row) for task, row in found["results"].items()}
    own = local.local if local else name
    record: dict[str, Any] = {"task": name, "source": "folder" if local else "harness", "harness": __version__}
    record["data"] = selection.digest(name)
    record["metrics"] = metrics.pop(own, {})
    documents = sum(len({r.doc_id for r in task.instances}) for task in loaded["tasks"].values())
    record |= {"documents": documents, "requests": sum(len(task.instances) for task in loaded["tasks"].values())}
    record |= _chance(loaded["tasks"][own]) if own in loaded["tasks"] else _group_chance(loaded["tasks"])
    if metrics:
        record["subtasks"] = metrics
    return {**record, **_activated(lm)}


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    """As the harness's own command does."""
    default = task.get_config("num_fewshot")
    if num_fewshot is not None and default == 0 and num_fewshot != 0:
        raise ConfigError(f"num_fewshot = {num_fewshot} has no effect on {name}: its task file fixes 0")
    if num_fewshot is not None or default is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=_SEED)


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """`acc,none` -> `acc`; what is no number is left out."""
    numbers = {key.removesuffix(",none"): value for key, value in row.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if not key.startswith("sample_")}


def _chance(task: Any) -> dict[str, float | None]:
    """Accuracy of guessing; and, where all documents have the same choices, of always giving the commonest answer."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return {"chance": None, "majority_class": None}
    documents = list({request.doc_id: request.doc for request in task.instances}.values())
    choices = [tuple(task.doc_to_choice(doc)) for doc in documents]
    majority = None
    if len(set(choices)) == 1 < len(documents):
        majority = max(Counter(map(str, map(task.doc_to_target, documents))).values()) / len(documents)
    return {"chance": sum(1 / len(names) for names in choices) / len(documents), "majority_class": majority}


def _group_chance(tasks: dict[str, Any]) -> dict[str, float | None]:
    """Of a group, by documents; None unless every task has one."""
    counts = {name: len({request.doc_id for request in task.instances}) for name, task in tasks.items()}
    chances = {name: _chance(task)["chance"] for name, task in tasks.items()}
    known = {name: chance for name, chance in chances.items() if chance is not None}
    if not known or len(known) < len(tasks):
        return {"chance": None, "majority_class": None}
    return {"chance": sum(known[name] * counts[name] for name in known) / sum(counts.values()), "majority_class": None}


def _activated(lm: Any) -> dict[str, Any]:
    """What the tokens of a task activated; the paper's Table 3 is `activated_ratio`."""
    config, read = lm.model.config, lm.measured
    return {
        "tokens": read.tokens,
        "truncated_requests": read.truncated,
        "windowed_requests": read.windowed,
        "activated_units": read.units,
        **activated(config, read.tokens, read.units),
    }
