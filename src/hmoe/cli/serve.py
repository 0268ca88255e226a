"""`hmoe serve`: answer HTTP requests from a model in memory."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmoe.cli.arguments import AnyModel, ServedContext, ServedPrecision
from hmoe.cli.output import print_note
from hmoe.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from hmoe.runs.open import Opened


def serve_model(
    path: AnyModel,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then give an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which is printed.")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="HMOE_API_KEY", help="Demanded on every route but /health.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help="Web page whose browser may ask, such as "
                            "http://localhost:3000; * for any; repeatable. Default: none but the server's own.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in requests. Default: the folder's.")] = None,
    context: ServedContext = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Sequences computed at a time; each has memory for the context.")] = 8,
    max_queue: Annotated[int, typer.Option(min=0, max=100_000, help="Requests that wait beside those; the next get 429.")] = 64,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="New tokens a request may ask for. Default: the context.")] = None,
    prefill_tokens: Annotated[int, typer.Option(min=1, max=2**20, help="Prompt tokens read per step.")] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1024, max=2**30, help="Largest body of a request, bytes.")] = 1 << 20,
    max_connections: Annotated[int, typer.Option(min=1, max=65536, help="Open connections; the next get 503.")] = 512,
    timeout: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds that a request may take, waiting included.")] = 300,
    precision: ServedPrecision = None,
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
        opened = open_served_model(path, precision)
        context = context or opened.context_length
        limits = Limits(max_batch, max_queue, context, prefill_tokens)
        served = Served(
            opened.model, opened.tokenizer, name or opened.name, opened.chat_template, opened.begin, opened.folder
        )
        service = Service(served, limits, max_tokens or context, timeout)
        if not api_key and not listening.getsockname()[0].startswith(("127.", "::1")):
            print_note("anybody who reaches this address may use the model; --api-key asks for a key")
        guard = GuardLimits(max_body_bytes, api_key=api_key, origins=origins)
        server = Server(
            service,
            guard,
            ConnectionLimits(max_connections),
            lambda url: typer.echo(f"hmoe: {served.name} is served at {url}/v1"),
        )
        with service.engine:
            server.run([listening])


def open_served_model(path: Path, precision: str | None) -> "Opened":
    """Open a model for an engine: without gradients, in this precision or as it is stored.

    It is read in a thread that then ends: with two sets of OpenMP threads in a process, the engine's would take turns with those
    that reading left behind, and be three times slower.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from hmoe.runs.open import open_model

    def load() -> "Opened":
        opened = open_model(path, print_note)
        if precision is not None:
            opened.model.to(getattr(torch, precision))
        opened.model.requires_grad_(False)
        return opened

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(load).result()
