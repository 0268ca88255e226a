"""`hmoe eval`: perplexity of text, or accuracy on benchmark tasks."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmoe.cli.arguments import AnyModel, AsJson
from hmoe.cli.next_steps import make_step, name_path, print_steps
from hmoe.cli.output import print_numbers
from hmoe.cli.processes import (
    NumProcesses,
    StartOptions,
    choose_note,
    join_workers,
    open_progress_bar,
    read_launch,
    start_processes,
)
from hmoe.cli.table import Column, Table, render_table
from hmoe.cli.texts import list_validation_texts, read_texts
from hmoe.errors import ConfigError, DataError
from hmoe.storage import read_json, write_atomic

if TYPE_CHECKING:
    from hmoe.evaluate.perplexity import TextPerplexity
    from hmoe.parallel.workers import Workers
    from hmoe.runs.open_model import OpenedModel
    from hmoe.specs.model import ModelSpec


_TABLE_WIDTH = 200  # of table.txt, in which no column moves to a second block

_Text = Annotated[
    list[Path] | None,
    typer.Option(
        help="Text, jsonl or parquet file or folder; repeatable. Default: the run's validation split."
    ),
]
_TextField = Annotated[
    str | None,
    typer.Option(
        help="Field of jsonl and parquet records, or a template of several: '{question}\\n{response}'."
    ),
]
_Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens read at once. Default: as many as in training.")
]
_Precision = Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: that of the weights.")]
_Tasks = Annotated[
    str | None,
    typer.Option(
        help="Benchmarks instead of text, separated by commas: piqa, hellaswag, boolq, arc_easy, "
        "arc_challenge, winogrande, social_iqa, all; mmlu, cb, copa, sglue_rte; or any of "
        "lm-evaluation-harness."
    ),
]
_Benchmarks = Annotated[
    Path | None, typer.Option(help="Folder of `hmoe data benchmarks`. Without it tasks come from the hub.")
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Documents of each task. Default: all.")]
_NumFewshot = Annotated[
    int | None, typer.Option(min=0, help="Examples before each question. Default: as the task says.")
]
_BatchTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of one forward pass. Default: 4096.")]
_Out = Annotated[
    Path | None, typer.Option(help="Folder for results; tasks finished there are not evaluated again.")
]


def evaluate_folder(
    context: typer.Context,
    run: AnyModel,
    text: _Text = None,
    text_field: _TextField = None,
    window: _Window = None,
    precision: _Precision = None,
    tasks: _Tasks = None,
    benchmarks: _Benchmarks = None,
    limit: _Limit = None,
    num_fewshot: _NumFewshot = None,
    batch_tokens: _BatchTokens = None,
    out: _Out = None,
    processes: NumProcesses = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity of text, or benchmark accuracy.

    In all and per domain, in bits per byte.
    """
    of_tasks = {
        "--benchmarks": benchmarks,
        "--limit": limit,
        "--num-fewshot": num_fewshot,
        "--batch-tokens": batch_tokens,
        "--out": out,
    }
    if tasks is None:
        for flag, value in of_tasks.items():
            if value is not None:
                raise ConfigError(f"{flag} has no effect without --tasks; remove it or name tasks")
        if text_field and not text:
            raise ConfigError("--text-field has no effect without --text; remove it or name a text")
    elif text or text_field:
        raise ConfigError(
            f"{'--text' if text else '--text-field'} has no effect with --tasks; remove one of them"
        )
    numbers, starts_others = read_launch(processes)
    if starts_others:
        start_processes(context, StartOptions(processes or 1))
    with join_workers(numbers) as workers:
        if tasks is None:
            _evaluate_text(run, text, text_field, window, precision, as_json, workers)
            return
        options = {
            "limit": limit,
            "num_fewshot": num_fewshot,
            "precision": precision,
            "batch_tokens": batch_tokens,
        }
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        chosen = {key: value for key, value in options.items() if value is not None}
        _evaluate_tasks(run, names, benchmarks, window, out, chosen, as_json, workers)


def _evaluate_text(
    run: Path,
    text: list[Path] | None,
    text_field: str | None,
    window: int | None,
    precision: str | None,
    as_json: bool,
    workers: "Workers",
) -> None:
    from hmoe.evaluate.perplexity import sum_perplexities
    from hmoe.runs.open_model import open_model

    say = choose_note(workers)
    with workers.together():
        opened = open_model(run, say)
    if not text and opened.run is None:
        raise ConfigError(f"{run}: a Hugging Face folder has no validation split; name a text with --text")
    documents = read_texts(text, text_field) if text else list_validation_texts(opened, run)
    model = opened.model.config
    if not model.causal:
        say("experts see later tokens, so this perplexity is not comparable with causal models'")
    total = None if text else _count_held_out_tokens(opened)
    domains = _measure_domains(opened, documents, total, window, precision, workers)
    if workers.rank > 0:
        return
    read = ", ".join(map(str, text)) if text else "the run's held-out documents, whole"
    numbers = {"text": read, "step": opened.step, **_list_numbers(sum_perplexities(domains), model)}
    parts = {name: _list_numbers(domain, model) for name, domain in domains.items()}
    steps = [make_step("generate", name_path(run), "She was")] if model.causal else []
    if as_json:
        print_numbers({**numbers, "domains": parts, "next": [step.command for step in steps]}, as_json)
        return
    print_numbers(
        {name: _shorten(name, value) for name, value in numbers.items() if value is not None}, False
    )
    if len(domains) > 1:
        _print_domains(parts)
    print_steps(steps)


def _measure_domains(
    opened: "OpenedModel",
    documents: Iterable[tuple[str, str]],
    total: int | None,
    window: int | None,
    precision: str | None,
    workers: "Workers",
) -> dict[str, "TextPerplexity"]:
    """Return the perplexity of each domain, with a bar over `total` tokens."""
    from hmoe.evaluate.perplexity import measure_perplexity_by_domain
    from hmoe.evaluate.precision import EvaluationPrecision

    total = total if workers.size == 1 else None  # nobody knows how much of it is this process's part
    with EvaluationPrecision(opened.model, precision)(), open_progress_bar(workers) as bar:

        def report(num_documents: int, num_tokens: int) -> None:
            # A text that was decoded may be encoded in a few tokens more.
            done = min(num_tokens, total) if total else num_tokens
            bar.update("text", done, total, [f"{num_documents:,} documents", f"{num_tokens:,} tokens"])

        length = window or opened.context_length
        return measure_perplexity_by_domain(
            opened.model, opened.tokenizer, documents, length, report, opened.begin, workers
        )


def _count_held_out_tokens(opened: "OpenedModel") -> int | None:
    """Return the tokens of a run's held-out documents without what stands between them; None if nobody knows."""
    from hmoe.data.open import open_data

    assert opened.run is not None
    try:
        index = open_data(opened.run, opened.data, opened.tokenizer.fingerprint)
    except DataError:
        return None  # whoever reads the documents says what is wrong
    shards = index.of("valid")
    return sum(shard.tokens - shard.documents * (1 + len(index.begin)) for shard in shards)


def _list_numbers(result: "TextPerplexity", model: "ModelSpec") -> dict[str, Any]:
    from hmoe.evaluate.summary import describe_activation

    names = ("documents", "tokens", "text_bytes", "nats_per_token", "perplexity", "bits_per_byte")
    values = {name: getattr(result, name) for name in names}
    return {**values, **describe_activation(model, result.tokens, result.units)}


def _shorten(name: str, value: Any) -> Any:
    return round(value) if name == "activated_parameters" else value


def _print_domains(domains: dict[str, dict[str, Any]]) -> None:
    columns = [
        Column("domain", "domain", str, is_text=True),
        Column("documents", "documents"),
        Column("tokens", "tokens"),
        Column("perplexity", "perplexity", _show_digits),
        Column("bits_per_byte", "bits/byte", _show_digits),
        Column("activated_ratio", "activated", _show_share),
    ]
    typer.echo()
    rows = [{"domain": name, **numbers} for name, numbers in domains.items()]
    typer.echo(render_table(Table(columns, rows)), nl=False)


def _show_digits(value: float) -> str:
    return f"{value:,.4f}"


def _show_share(value: float) -> str:
    return f"{value:.2%}"


def _evaluate_tasks(
    run: Path, names: list[str], benchmarks: Path | None, window: int | None, out: Path | None, chosen: dict[str, Any],
    as_json: bool, workers: "Workers",
) -> None:  # fmt: skip
    from hmoe.cli.results_table import format_results_table
    from hmoe.evaluate import harness
    from hmoe.evaluate.precision import check_precision
    from hmoe.evaluate.tasks import select_tasks
    from hmoe.runs.benchmark_scores import RESULTS
    from hmoe.runs.open_model import open_model

    check_precision(chosen.get("precision"))
    say = choose_note(workers)
    with workers.together():
        selection = select_tasks(names, benchmarks, say)  # before a large model is read
        opened = open_model(run, say)
    about = harness.ModelInfo(
        opened.name, harness.read_training_record(run, opened.step) if opened.run else {}
    )
    options = harness.EvaluationOptions(begin=opened.begin, workers=workers, **chosen)
    with open_progress_bar(workers) as bar:

        def report(task: str, done: int, total: int) -> None:
            bar.update(task, done, total, f"{task}: {done:,} of {total:,} sequences")

        result = harness.evaluate_tasks(
            opened.model, opened.tokenizer, window or opened.context_length, selection,
            options=options, about=about, out=out, reports=harness.Reports(say, report),
        )  # fmt: skip
    if workers.rank > 0:
        return
    if out is not None:
        # Of all tasks that are finished there, not only of those that were asked for now.
        whole = read_json(out / RESULTS)
        write_atomic(out / "table.txt", format_results_table(whole, _TABLE_WIDTH).encode())
    if as_json:
        print_numbers(result, as_json)
    else:
        typer.echo(format_results_table(result), nl=False)
