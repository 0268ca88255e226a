"""`hmoe eval`: perplexity of text, benchmark tasks."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hmoe.cli.app import AnyModel, app, say, show
from hmoe.errors import ConfigError, DataError, HMoEError

_PLAIN_SECONDS = 10.0  # between plain progress lines


@app.command("eval")
def evaluate(  # noqa: PLR0913, PLR0917 - an option is an argument
    run: AnyModel,
    text: Annotated[list[Path] | None, typer.Option(help="Text, jsonl or parquet file or folder; repeatable. "
                    "Default: the run's validation split.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of jsonl and parquet records, or a template of several: "
                          "'{question}\\n{response}'.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens read at once. Default: as many as in training.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: that of the weights.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Benchmarks instead of text, separated by commas: piqa, hellaswag, boolq, "
                     "arc_easy, arc_challenge, winogrande, social_iqa, all; mmlu, cb, copa, sglue_rte; or any of "
                     "lm-evaluation-harness.")] = None,
    benchmarks: Annotated[Path | None, typer.Option(help="Folder of `hmoe data benchmarks`. Without it tasks come from the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task. Default: all.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question. Default: as the task says.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one forward pass. Default: 4096.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; tasks finished there are not evaluated again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:  # fmt: skip
    """Perplexity and bits per byte of any text under a model, in all and per domain; or accuracy on benchmark tasks."""
    given = {"--benchmarks": benchmarks, "--limit": limit, "--num-fewshot": num_fewshot, "--batch-tokens": batch_tokens,
             "--out": out}  # fmt: skip
    if tasks is None:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name} has no effect without --tasks; remove it or name tasks")
        _text(run, text, text_field, window, precision, as_json)
        return
    if text or text_field:
        raise ConfigError(f"{'--text' if text else '--text-field'} has no effect with --tasks; remove one of them")
    how = {"limit": limit, "num_fewshot": num_fewshot, "precision": precision, "batch_tokens": batch_tokens}
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    _tasks(
        run, names, benchmarks, window, out, {key: value for key, value in how.items() if value is not None}, as_json
    )


def _text(
    run: Path, text: list[Path] | None, text_field: str | None, window: int | None, precision: str | None, as_json: bool
) -> None:
    from hmoe.evaluate.perplexity import by_domain, total
    from hmoe.evaluate.precision import Precision
    from hmoe.runs.open import open_model
    from hmoe.train.console import eval_line

    if text_field and not text:
        raise ConfigError("--text-field has no effect without --text; remove it or name a text")
    opened = open_model(run, say)
    if not text and opened.run is None:
        raise ConfigError(f"{run}: a Hugging Face folder has no validation split; name a text with --text")
    read = documents(text, text_field) if text else validation(opened, run)
    if not opened.model.config.causal:
        say(
            "experts choose among all tokens, later ones too: this perplexity knows what it predicts, and is no match for others"
        )
    with Precision(opened.model, precision)():
        length = window or opened.context_length
        domains = by_domain(opened.model, opened.tokenizer, read, length, eval_line(), opened.begin)
    numbers = {"step": opened.step, **_numbers(total(domains))}
    if as_json:
        show({**numbers, "domains": {name: _numbers(one) for name, one in domains.items()}}, as_json)
        return
    show({name: value for name, value in numbers.items() if value is not None}, as_json)
    if len(domains) > 1:
        width = max(map(len, domains))
        for name, one in domains.items():
            typer.echo(
                f"{name:{width}s}  {one.documents:,} documents  {one.tokens:,} tokens  perplexity {one.perplexity:,.4f}  "
                f"bits_per_byte {one.bits_per_byte:.4f}"
            )


def _tasks(
    run: Path, names: list[str], benchmarks: Path | None, window: int | None, out: Path | None, how: dict[str, Any], as_json: bool
) -> None:  # fmt: skip
    from hmoe.evaluate import harness
    from hmoe.evaluate.precision import check
    from hmoe.evaluate.table import table
    from hmoe.evaluate.tasks import select
    from hmoe.runs.open import open_model

    check(how.get("precision"))
    selection = select(names, benchmarks, say)  # before a large model is read

    opened = open_model(run, say)
    about = harness.About(opened.name, harness.training_record(run, opened.step) if opened.run else {})
    with _TaskProgress() as progress:
        result = harness.evaluate(
            opened.model, opened.tokenizer, window or opened.context_length, selection,
            options=harness.Options(begin=opened.begin, **how), about=about, out=out, reports=harness.Reports(say, progress),
        )  # fmt: skip
    if as_json:
        show(result, as_json)
    else:
        typer.echo(table(result), nl=False)


class _TaskProgress:
    """A bar per task on a terminal, now and then a line elsewhere; on stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._ids: dict[str, Any] = {}
        self._last = time.perf_counter()

    def __enter__(self) -> "_TaskProgress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        if self._bars:
            if task not in self._ids:
                self._ids[task] = self._bars.add_task(task, total=total)
            self._bars.update(self._ids[task], completed=done)
        elif done == total or time.perf_counter() - self._last > _PLAIN_SECONDS:
            self._last = time.perf_counter()
            print(f"{task}: {done:,} of {total:,} sequences", file=sys.stderr, flush=True)


def _numbers(result: Any) -> dict[str, Any]:
    names = ("documents", "tokens", "text_bytes", "nats_per_token", "perplexity", "bits_per_byte")
    return {name: getattr(result, name) for name in names}


def documents(paths: list[Path], text_field: str | None) -> Iterator[tuple[str, str]]:
    """(domain, text) of files and folders."""
    from hmoe.data.inputs import sources
    from hmoe.data.readers import read

    empty = 0
    for source in sources([str(path) for path in paths], say=say):
        for item in read(source, text_field):
            if isinstance(item, HMoEError):
                raise item
            empty += not item.text
            if item.text:
                yield item.domain, item.text
    if empty:
        say(f"left out {empty:,} empty documents")


def validation(opened: Any, run: Path) -> Iterator[tuple[str, str]]:
    """The run's own held-out documents, back as text."""
    from hmoe.data.open import open_data

    try:
        index = open_data(opened.run, opened.data, opened.tokenizer.fingerprint)
    except DataError as error:
        raise DataError(
            f"{error}; `hmoe train {run} data.path=NEW` says where it lies now, or name a text with --text"
        ) from None
    if not index.of("valid"):
        raise DataError(f"{index.folder}: no validation split; name a text with --text")
    for shard in index.of("valid"):
        ids, start = index.tokens(shard), len(index.begin)
        for stop in (ids == index.separator).nonzero()[0].tolist():
            if stop < start:
                continue  # of what documents begin with, which may be the separator itself
            yield shard.domain, opened.tokenizer.decode(ids[start:stop].tolist())
            start = stop + 1 + len(index.begin)
