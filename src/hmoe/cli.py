"""The command line: one function per verb. torch is imported inside the verbs, so `hmoe --help` is instant."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hmoe import __version__, recipes
from hmoe.bench.verbs import app as bench_app
from hmoe.errors import CheckpointError, ConfigError, DataError, HMoEError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Pretrain, evaluate and look inside language models whose experts differ in size.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Turn text into token shards.")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
Recipe = Annotated[str, typer.Argument(help="Preset name or YAML file; then overrides: a.b=c or --a.b c.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder made by `hmoe train`.")]


@app.command(context_settings=_OVERRIDES)
def train(
    context: typer.Context,
    recipe: Recipe,
    run: Annotated[
        Path | None, typer.Option(help="Run folder; resumed if it exists. Default: runs/<recipe name>.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its plan, then end.")
    ] = False,
) -> None:
    """Train a recipe until its budget is reached; the same command resumes a run that was stopped."""
    name, config = recipes.load(recipe, context.args)
    if dry_run:
        typer.echo(recipes.dump(config))
        _print_plan(config, as_json=False)
        return
    from hmoe.train.run_folder import RunFolder

    with RunFolder(run or Path("runs") / name, config) as folder:  # refuses a busy folder before torch is imported
        from hmoe.train.console import Console
        from hmoe.train.loop import train as train_loop

        with Console() as console:
            train_loop(config, folder, console)


@app.command(context_settings=_OVERRIDES)
def plan(
    context: typer.Context,
    recipe: Recipe,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; parameters, FLOPs per token, bytes.")
    ] = False,
) -> None:
    """Parameters, FLOPs, tokens and memory of a recipe, without making a tensor."""
    _print_plan(recipes.load(recipe, context.args)[1], as_json)


@app.command(context_settings=_OVERRIDES)
def config(context: typer.Context, recipe: Recipe) -> None:
    """Print a recipe in full as YAML, every default included."""
    typer.echo(recipes.dump(recipes.load(recipe, context.args)[1]), nl=False)


@app.command("eval")
def evaluate(
    run: RunPath,
    text: Annotated[list[Path] | None, typer.Option(help="Text, jsonl or parquet file or folder; repeatable. "
                    "Default: the run's validation split.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of jsonl and parquet records.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens read at once. Default: the training sequence length.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:  # fmt: skip
    """Perplexity and bits per byte of any text under a trained model."""
    from hmoe.checkpoint import open_run
    from hmoe.evaluate.perplexity import perplexity
    from hmoe.train.console import eval_line

    if text_field and not text:
        raise ConfigError("--text-field has no effect without --text; remove it or name a text")
    config, model, tokenizer, step = open_run(run, _say)
    window = window or config.data.sequence_length
    texts = _texts(text, text_field) if text else _validation_texts(config, tokenizer)
    result = perplexity(model, tokenizer, texts, window, eval_line())
    numbers = {
        "step": step, "documents": result.documents, "tokens": result.tokens, "text_bytes": result.text_bytes,
        "nats_per_token": result.nats / result.tokens, "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
    }  # fmt: skip
    _print(numbers, as_json)


@app.command()
def generate(
    run: RunPath,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="New tokens at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k most probable tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens whose sum reaches p.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a prompt, written out as it is drawn."""
    from hmoe.checkpoint import open_run
    from hmoe.model.generate import Sampling
    from hmoe.model.generate import generate as generate_ids

    how = Sampling(temperature, top_k, top_p)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError("prompt: is not valid UTF-8") from None
    config, model, tokenizer, _ = open_run(run, _say)
    ids = tokenizer.encode([prompt])[0] or [tokenizer.separator]
    if len(ids) + max_tokens > config.data.sequence_length:
        _say(
            f"prompt and max_tokens are {len(ids) + max_tokens} tokens; the model was trained on {config.data.sequence_length}"
        )
    shown = tokenizer.decode(ids)  # not always the prompt: some tokenizers normalise
    typer.echo(shown, nl=False)
    for token in generate_ids(model, ids, max_tokens, how, seed, tokenizer):
        ids = [*ids, token]
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # wait for the rest of a character
            typer.echo(text[len(shown) :], nl=False)
            shown = text
    typer.echo(tokenizer.decode(ids)[len(shown) :])


@app.command()
def info() -> None:
    """Versions, CPU and GPU features, installed extras."""
    import importlib.metadata
    import importlib.util
    import platform

    import torch

    triton = importlib.util.find_spec("triton")
    extras = {"data": ("pyarrow", "zstandard", "sentencepiece"), "track": ("tensorboard",)}
    numbers: dict[str, Any] = {"hmoe": __version__, "python": platform.python_version()}
    numbers |= {name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")}
    numbers["cpu"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    numbers["cpu_bfloat16"] = "hardware" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "emulated: use float32"
    from hmoe.kernels import native

    numbers["cpu_kernels"] = native.describe()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    numbers["gpu"] = ", ".join(gpus) or "none"
    numbers["triton"] = importlib.metadata.version("triton") if triton else "not installed: used on NVIDIA GPUs"
    for extra, modules in extras.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        numbers[f"extra [{extra}]"] = (
            f"missing {', '.join(missing)}: pip install 'hmoe[{extra}]'" if missing else "installed"
        )
    _print(numbers, as_json=False)


@data_app.command("prepare")
def prepare(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files or folders, or domain=PATH: "
                      ".txt, .jsonl, .parquet, also .gz, .xz, .zst.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; continued if it was begun.")],
    tokenizer: Annotated[str, typer.Option(help="bytes, bpe:SIZE (trained on the input), or a tokenizer file or folder.")] = "bpe:8192",
    text_field: Annotated[str | None, typer.Option(help="Field of jsonl and parquet records. Default: text, raw_content, content.")] = None,
    validation: Annotated[float, typer.Option(help="Share of documents held out, chosen by their hash.")] = 0.01,
    weight: Annotated[list[str] | None, typer.Option(help="domain=NUMBER: sampling weight; repeatable. Default: by size.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unusable documents to skip before giving up.")] = 0,
) -> None:  # fmt: skip
    """Tokenise text into shards; a killed call is continued by the same command, to the same bytes."""
    from hmoe.data.prepare import Request
    from hmoe.data.prepare import prepare as prepare_data
    from hmoe.train.console import data_line

    request = Request(inputs, tokenizer, text_field, validation, _weights(weight), max_bad)
    index = prepare_data(request, out, data_line())
    tokens = {split: sum(shard.tokens for shard in index.of(split)) for split in ("train", "valid")}
    typer.echo(
        f"{out}: {tokens['train']:,} training tokens, {tokens['valid']:,} held out, vocabulary {index.vocab_size}, "
        f"{index.skipped_documents} documents skipped"
    )
    if not tokens["valid"]:
        _say("no document was held out, so training will not report validation loss; see --validation")


def run(arguments: list[str]) -> int:
    """Run the command line; errors are one line on stderr and the exit code of `hmoe.errors`."""
    command = typer.main.get_command(app)
    try:
        command.main(arguments, prog_name="hmoe", standalone_mode=False)
        sys.stdout.flush()
    except HMoEError as error:
        _say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.Exit as ended:
        return ended.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        _say(f"error: {error.filename or 'input/output'}: {error.strerror or error}")
        return (DataError if arguments[:1] == ["data"] else CheckpointError).exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of the parser's usage errors
            raise
        _say(f"error: {' '.join(error.format_message().split())}; see hmoe {' '.join(arguments[:1])} --help")
        return 2
    return 0


def _say(text: str) -> None:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())  # whatever a path or a key holds
    print(f"hmoe: {line}", file=sys.stderr, flush=True)


def _print(numbers: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(numbers))
        return
    for name, value in numbers.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if isinstance(value, float) else value
        typer.echo(f"{name:28s} {shown}")


def _print_plan(config: Any, as_json: bool) -> None:
    from hmoe.count import plan

    numbers = plan(config)
    if as_json:
        _print(numbers, as_json)
        return
    for name, value in numbers.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            _print({f"  {part}": number for part, number in value.items()}, as_json)
        else:
            _print({name: value}, as_json)


def _weights(items: list[str] | None) -> dict[str, float] | None:
    weights = {}
    for item in items or []:
        domain, equals, number = item.rpartition("=")
        try:
            weights[domain] = float(number)
        except ValueError:
            equals = ""
        if not (domain and equals and 0 <= weights[domain] <= 1e12):
            raise ConfigError(f"--weight {item}: must be domain=NUMBER with a number from 0 to 1e12")
    return weights or None


def _texts(paths: list[Path], text_field: str | None) -> Iterator[str]:
    from hmoe.data.readers import read, sources

    for source in sources([str(path) for path in paths]):
        for item in read(source, text_field):
            if isinstance(item, HMoEError):
                raise item
            yield item.text


def _validation_texts(config: Any, tokenizer: Any) -> Iterator[str]:
    """The run's own held-out documents, back as text."""
    from hmoe.data.corpus import open_corpus
    from hmoe.data.shards import open_index

    corpus = config.data.path == "corpus"
    index = open_corpus(config.corpus_tokenizer) if corpus else open_index(Path(config.data.path))
    if not index.of("valid"):
        raise DataError(f"{index.folder}: no validation split; name a text with --text")
    for shard in index.of("valid"):
        ids, start = index.tokens(shard), 0
        for stop in (ids == index.separator).nonzero()[0].tolist():
            yield tokenizer.decode(ids[start:stop].tolist())
            start = stop + 1
