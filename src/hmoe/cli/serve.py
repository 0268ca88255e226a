"""Verbs that keep a model in memory: `hmoe serve`, `hmoe chat`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hmoe.cli.app import AnyModel, app, say
from hmoe.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from hmoe.runs.open import Opened

Precision = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Of weights and keys. Default: as the weights are stored.")
]
ExpertThreshold = Annotated[
    float | None, typer.Option(help="Threshold of a top-p router, in (0, 1]: lower is cheaper. Default: the model's.")
]
Context = Annotated[
    int | None,
    typer.Option(min=2, max=2**24, help="Tokens of prompt and answer. Default: the length it was trained on."),
]


@app.command()
def serve(  # noqa: PLR0913, PLR0917 - an option is an argument
    path: AnyModel,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then give an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which is printed.")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="HMOE_API_KEY", help="Demanded on every route but /health.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help="Web page whose browser may ask, such as "
                            "http://localhost:3000; * for any; repeatable. Default: none but the server's own.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in requests. Default: the folder's.")] = None,
    context: Context = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Sequences computed at a time; each has memory for the context.")] = 8,
    max_queue: Annotated[int, typer.Option(min=0, max=100_000, help="Requests that wait beside those; the next get 429.")] = 64,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="New tokens a request may ask for. Default: the context.")] = None,
    prefill_tokens: Annotated[int, typer.Option(min=1, max=2**20, help="Prompt tokens read per step.")] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1024, max=2**30, help="Largest body of a request, bytes.")] = 1 << 20,
    max_connections: Annotated[int, typer.Option(min=1, max=65536, help="Open connections; the next get 503.")] = 512,
    timeout: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds that a request may take, waiting included.")] = 300,
    precision: Precision = None,
) -> None:  # fmt: skip
    """Answer HTTP requests as OpenAI's API does: completions, chat, streams, log-probabilities."""
    try:
        from hmoe.serve.origins import check_origins
        from hmoe.serve.server import ConnectionLimits, Server, listen
    except ImportError:
        raise missing_extra("the server's routes", "serve") from None
    from hmoe.serve.ask import Limits
    from hmoe.serve.guard import GuardLimits
    from hmoe.serve.service import Served, Service

    if api_key == "" or (api_key is None and os.environ.get("HMOE_API_KEY") == ""):
        raise ConfigError("--api-key or HMOE_API_KEY: is empty; leave it out, or unset it, for none")
    origins = check_origins(allow_origin or ())
    with listen(host, port) as listening:  # before the model is read, which may take long
        opened = _open(path, precision)
        context = context or opened.context_length
        limits = Limits(max_batch, max_queue, context, prefill_tokens)
        served = Served(
            opened.model, opened.tokenizer, name or opened.name, opened.chat_template, opened.begin, opened.folder
        )
        service = Service(served, limits, max_tokens or context, timeout)
        if not api_key and not listening.getsockname()[0].startswith(("127.", "::1")):
            say("anybody who reaches this address may use the model; --api-key asks for a key")
        guard, connections = (
            GuardLimits(max_body_bytes, api_key=api_key, origins=origins),
            ConnectionLimits(max_connections),
        )
        server = Server(
            service, guard, connections, lambda url: typer.echo(f"hmoe: {served.name} is served at {url}/v1")
        )
        with service.engine:
            server.run([listening])


@app.command()
def chat(  # noqa: PLR0913, PLR0917
    path: AnyModel,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="New tokens of an answer. Default: a quarter of the context.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k most probable tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens whose sum reaches p.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same answers.")] = 0,
    top_p_experts: ExpertThreshold = None,
    context: Context = None,
    precision: Precision = None,
) -> None:  # fmt: skip
    """Talk with a model: every line of the input is a turn, Ctrl-D or the end of the input ends it."""
    from hmoe.model.generate import Sampling
    from hmoe.serve.ask import Ask, Limits
    from hmoe.serve.chat import Conversation
    from hmoe.serve.engine import Engine
    from hmoe.serve.repl import Chat, talk

    how = Sampling(temperature, top_k, top_p)
    if top_p_experts is not None and not 0 < top_p_experts <= 1:
        raise ConfigError(f"--top-p-experts {top_p_experts}: must be in (0, 1]")
    opened = _open(path, precision)
    context = context or opened.context_length
    layout = Conversation(opened.tokenizer, opened.chat_template, opened.begin, opened.folder)
    with Engine(opened.model, opened.tokenizer, Limits(1, 0, context)) as engine:
        if top_p_experts is not None and engine.top_p is None:
            raise ConfigError(f"--top-p-experts {top_p_experts}: the router of this model is not top-p")
        ask = Ask((), max_tokens or max(1, engine.capacity // 4), how, seed, top_p_experts=top_p_experts)
        conversation = Chat(engine, layout, ask, system, say)
        talk(conversation, _lines(), lambda piece: typer.echo(piece, nl=False), say)


def _lines() -> Iterator[str]:
    """Lines of the input, asked for only in a terminal; none where there is no input."""
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


def _open(path: Path, precision: str | None) -> "Opened":
    """In a thread that then ends: with two sets of OpenMP threads in a process, the engine's would take turns with those
    that loading left behind, and be three times slower."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from hmoe.runs.open import open_model

    def load() -> "Opened":
        opened = open_model(path, say)
        if precision is not None:
            opened.model.to(getattr(torch, precision))
        opened.model.requires_grad_(False)
        return opened

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(load).result()
