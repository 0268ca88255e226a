"""`hmoe generate`: continue a prompt."""

from typing import Annotated

import typer

from hmoe.cli.arguments import AnyModel, Temperature, TopKTokens, TopPTokens
from hmoe.cli.flags import print_note_with_flags
from hmoe.cli.output import print_note
from hmoe.errors import ConfigError

_Prompt = Annotated[str, typer.Argument(help="Text to continue.")]
_MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1, max=100000, help="New tokens at most. Default: 200, or what the context has room for."
    ),
]
_MOST_TOKENS = 200
_Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")]


def continue_prompt(
    run: AnyModel,
    prompt: _Prompt,
    max_tokens: _MaxTokens = None,
    temperature: Temperature = 0.8,
    top_k: TopKTokens = 0,
    top_p: TopPTokens = 0.95,
    seed: _Seed = 0,
) -> None:
    """Continue a prompt, written out as it is drawn."""
    from hmoe.model.generate import Sampling, generate_tokens
    from hmoe.model.transformer import check_causal
    from hmoe.runs.open_model import open_model

    sampling = Sampling(temperature, top_k, top_p)  # refused before a large model is read
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError("prompt: is not valid UTF-8") from None
    opened = open_model(run, print_note)
    check_causal(opened.model.config)
    tokenizer, length = opened.tokenizer, opened.context_length
    ids = [*opened.begin, *tokenizer.encode([prompt])[0]] or [tokenizer.separator]
    if max_tokens is None:
        max_tokens = min(_MOST_TOKENS, length - len(ids)) if len(ids) < length else _MOST_TOKENS
    if len(ids) + max_tokens > length:
        note = print_note_with_flags("max_tokens")
        note(f"prompt and `max_tokens` are {len(ids) + max_tokens} tokens; the model was trained on {length}")
    detokenizer, shown = tokenizer.detokenizer(ids), 0
    typer.echo(tokenizer.decode(ids), nl=False)  # not always the prompt: some tokenizers normalise
    for token in generate_tokens(opened.model, ids, max_tokens, sampling, seed, tokenizer):
        detokenizer.add(token)
        # A character may need several tokens: only what later tokens cannot change is printed.
        typer.echo(detokenizer.settled[shown:], nl=False)
        shown = len(detokenizer.settled)
    typer.echo(detokenizer.text[shown:])
