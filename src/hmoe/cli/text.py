"""Verbs that take a model and text: `hmoe eval`, `hmoe generate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hmoe.cli.base import RunPath, app, say, show
from hmoe.errors import ConfigError, DataError, HMoEError


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
    config, model, tokenizer, step = open_run(run, say)
    window = window or config.data.sequence_length
    texts = _texts(text, text_field) if text else _validation_texts(config, tokenizer)
    result = perplexity(model, tokenizer, texts, window, eval_line())
    numbers = {
        "step": step, "documents": result.documents, "tokens": result.tokens, "text_bytes": result.text_bytes,
        "nats_per_token": result.nats / result.tokens, "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
    }  # fmt: skip
    show(numbers, as_json)


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
    config, model, tokenizer, _ = open_run(run, say)
    ids = tokenizer.encode([prompt])[0] or [tokenizer.separator]
    if len(ids) + max_tokens > config.data.sequence_length:
        say(
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
