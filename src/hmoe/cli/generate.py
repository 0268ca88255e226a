"""`hmoe generate`."""

from typing import Annotated

import typer

from hmoe.cli.app import AnyModel, app, say
from hmoe.errors import ConfigError


@app.command()
def generate(
    run: AnyModel,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="New tokens at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k most probable tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens whose sum reaches p.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a prompt, written out as it is drawn."""
    from hmoe.model.generate import Sampling
    from hmoe.model.generate import generate as generate_ids
    from hmoe.model.transformer import check_causal
    from hmoe.runs.open import open_model

    how = Sampling(temperature, top_k, top_p)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError("prompt: is not valid UTF-8") from None
    opened = open_model(run, say)
    check_causal(opened.model.config)
    tokenizer, length = opened.tokenizer, opened.context_length
    ids = [*opened.begin, *tokenizer.encode([prompt])[0]] or [tokenizer.separator]
    if len(ids) + max_tokens > length:
        say(f"prompt and max_tokens are {len(ids) + max_tokens} tokens; the model was trained on {length}")
    detokenizer, shown = tokenizer.detokenizer(ids), 0
    typer.echo(tokenizer.decode(ids), nl=False)  # not always the prompt: some tokenizers normalise
    for token in generate_ids(opened.model, ids, max_tokens, how, seed, tokenizer):
        detokenizer.add(token)
        typer.echo(detokenizer.settled[shown:], nl=False)
        shown = len(detokenizer.settled)
    typer.echo(detokenizer.text[shown:])
