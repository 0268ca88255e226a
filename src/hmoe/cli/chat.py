"""`hmoe chat`: talk with a model on a terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from hmoe.cli.arguments import AnyModel, ServedContext, ServedPrecision, Temperature, TopKTokens, TopPTokens
from hmoe.cli.flags import print_note_with_flags
from hmoe.cli.output import print_note
from hmoe.cli.serve import open_served_model
from hmoe.errors import ConfigError
from hmoe.units import format_count

if TYPE_CHECKING:
    from hmoe.runs.open_model import OpenedModel

ExpertThreshold = Annotated[
    float | None,
    typer.Option(help="Threshold of a top-p router, in (0, 1]: lower is cheaper. Default: the model's."),
]


_System = Annotated[str | None, typer.Option(help="What the model is told before the first turn.")]
_MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="New tokens of an answer. Default: a quarter of the context.")
]
_Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same answers.")]


def chat_with_model(
    path: AnyModel,
    system: _System = None,
    max_tokens: _MaxTokens = None,
    temperature: Temperature = 0.8,
    top_k: TopKTokens = 0,
    top_p: TopPTokens = 0.95,
    seed: _Seed = 0,
    top_p_experts: ExpertThreshold = None,
    context: ServedContext = None,
    precision: ServedPrecision = None,
) -> None:
    """Talk with a model on the terminal.

    Every line of the input is a turn; Ctrl-D ends it.
    """
    from hmoe.model.generate import Sampling
    from hmoe.serve.chat_prompt import ChatLayout
    from hmoe.serve.engine.engine import Engine
    from hmoe.serve.engine.types import EngineLimits, SequenceTask
    from hmoe.serve.terminal.chat_session import ChatSession, answer_lines

    sampling = Sampling(temperature, top_k, top_p)  # refused before a large model is read
    if top_p_experts is not None and not 0 < top_p_experts <= 1:
        raise ConfigError(f"--top-p-experts {top_p_experts}: must be in (0, 1]")
    opened = open_served_model(path, precision)
    context = context or opened.context_length
    layout = ChatLayout(opened.tokenizer, opened.chat_template, opened.begin, opened.folder)
    with Engine(opened.model, opened.tokenizer, EngineLimits(1, 0, context)) as engine:
        if top_p_experts is not None and engine.top_p is None:
            raise ConfigError(f"--top-p-experts {top_p_experts}: the router of this model is not top-p")
        ask = SequenceTask(
            (), max_tokens or max(1, engine.capacity // 4), sampling, seed, top_p_experts=top_p_experts
        )
        note = print_note_with_flags("max_tokens")
        conversation = ChatSession(engine, layout, ask, system, note)
        if sys.stdin is not None and sys.stdin.isatty():
            print_note(_introduce_model(opened))
        answer_lines(conversation, read_turns(), lambda piece: typer.echo(piece, nl=False), note)


def _introduce_model(opened: "OpenedModel") -> str:
    """Return a line that says who answers, and how to leave."""
    num_parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    kind = (
        "" if opened.chat_template else "; it has no chat template, so it continues a dialogue in plain text"
    )
    return (
        f"{opened.name}, {format_count(num_parameters)} parameters{kind}; "
        "every line is a turn, Ctrl-C stops an answer, Ctrl-D leaves"
    )


def read_turns() -> Iterator[str]:
    """Yield the turns of the user, one a line of the input; none where there is no input.

    Only on a terminal a prompt stands before each.
    """
    if sys.stdin is None:
        return
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):  # editing and history of input(); not every Python has it
        import readline  # noqa: F401

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
