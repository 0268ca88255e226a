"""`hmoe serve`: answer HTTP requests from a model in memory."""

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmoe.cli.arguments import AnyModel, ServedContext, ServedPrecision
from hmoe.cli.output import print_note
from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.storage import lies_in_memory
from hmoe.units import parse_bytes

if TYPE_CHECKING:
    from socket import socket

    from hmoe.parallel.offloaded_model import OffloadForReading
    from hmoe.runs.open_model import OpenedModel
    from hmoe.serve.engine.types import EngineLimits
    from hmoe.serve.http.middleware import RequestLimits
    from hmoe.serve.http.request_log import RequestLog
    from hmoe.serve.http.server import ConnectionLimits
    from hmoe.serve.http.service import Service

_Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then give an API key.")]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which is printed.")]
_ApiKey = Annotated[
    str | None, typer.Option(envvar="HMOE_API_KEY", help="Demanded on every route but /health.")
]
_AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Web page whose browser may ask, such as http://localhost:3000; * for any; repeatable. "
        "Default: none but the server's own.",
    ),
]
_Name = Annotated[str | None, typer.Option(help="Name of the model in requests. Default: the folder's.")]
_MaxBatch = Annotated[
    int, typer.Option(min=1, max=4096, help="Sequences computed at a time; each has memory for the context.")
]
_MaxQueue = Annotated[
    int, typer.Option(min=0, max=100000, help="Requests that wait beside those; the next get 429.")
]
_MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="New tokens a request may ask for. Default: the context.")
]
_PrefillTokens = Annotated[int, typer.Option(min=1, max=2**20, help="Prompt tokens read per step.")]
_MaxBodyBytes = Annotated[int, typer.Option(min=1024, max=2**30, help="Largest body of a request, bytes.")]
_MaxConnections = Annotated[int, typer.Option(min=1, max=65536, help="Open connections; the next get 503.")]
_Timeout = Annotated[
    float, typer.Option(min=0.1, max=86400, help="Seconds that a request may take, waiting included.")
]

_Offload = Annotated[
    str | None,
    typer.Option(
        "--offload",
        metavar="SIZE",
        help="Keep so much of the experts' weights in memory, such as 2GB, and all in a file. Default: all in memory.",
    ),
]
_OffloadFolder = Annotated[
    Path | None,
    typer.Option(help="With --offload: where the file is. Default: the folder for temporary files."),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No line per request on standard error.")]


def serve_model(
    path: AnyModel,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    api_key: _ApiKey = None,
    allow_origin: _AllowOrigin = None,
    name: _Name = None,
    context: ServedContext = None,
    max_batch: _MaxBatch = 8,
    max_queue: _MaxQueue = 64,
    max_tokens: _MaxTokens = None,
    prefill_tokens: _PrefillTokens = 256,
    max_body_bytes: _MaxBodyBytes = 1 << 20,
    max_connections: _MaxConnections = 512,
    timeout: _Timeout = 300,
    precision: ServedPrecision = None,
    most_bytes: _Offload = None,
    offload_folder: _OffloadFolder = None,
    quiet: _Quiet = False,
) -> None:
    """Answer HTTP requests as OpenAI's API does.

    Completions, chat, streams, log-probabilities.
    """
    try:
        from hmoe.serve.http.request_log import RequestLog
        from hmoe.serve.http.server import ConnectionLimits, open_listening_socket
    except ImportError:
        raise make_missing_extra_error("the server's routes", "serve") from None
    from hmoe.serve.engine.types import EngineLimits
    from hmoe.serve.http.middleware import RequestLimits

    origins = _check_access(api_key, allow_origin or ())
    memory = _make_memory(most_bytes, offload_folder, precision)
    # Listening before the model is read, which may take long.
    with memory or nullcontext(), open_listening_socket(host, port) as listening:
        opened = open_served_model(path, precision, memory)
        limits = EngineLimits(max_batch, max_queue, context or opened.context_length, prefill_tokens)
        service = _make_service(opened, name or opened.name, limits, max_tokens, timeout, memory)
        _warn_of_strangers(listening.getsockname()[0], bool(api_key))
        guard = RequestLimits(max_body_bytes, api_key=api_key, origins=origins)
        with service.engine, nullcontext() if quiet else RequestLog(_write_to_stderr) as log:
            _answer_requests(service, guard, ConnectionLimits(max_connections), log, listening)


def _answer_requests(
    service: "Service", guard: "RequestLimits", connections: "ConnectionLimits", log: "RequestLog | None",
    listening: "socket",
) -> None:  # fmt: skip
    from hmoe.serve.http.server import Server

    ready = partial(_print_address, service, bool(guard.api_key))
    Server(service, guard, connections, ready, None if log is None else log.add).run([listening])


def _make_memory(size: str | None, folder: Path | None, precision: str | None) -> "OffloadForReading | None":
    """Return what gives the served model memory, None for all that it needs."""
    if size is None:
        if folder is not None:
            raise ConfigError("--offload-folder has no effect without --offload; remove it")
        return None
    import tempfile

    import torch

    from hmoe.parallel.offloaded_model import OffloadForReading

    most_bytes = parse_bytes(size)
    if not most_bytes:
        raise ConfigError(f"--offload {size}: must be a size above 0, such as 500MB or 2GB")
    folder = folder or Path(tempfile.gettempdir())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"--offload-folder {folder}: must be a folder in which files can be made")
    if lies_in_memory(folder):
        print_note(
            f"warning: {folder}: lies in memory (tmpfs), so --offload spares none; --offload-folder names another"
        )
    return OffloadForReading(folder, most_bytes, None if precision is None else getattr(torch, precision))


def _check_access(api_key: str | None, allow_origin: Sequence[str]) -> tuple[str, ...]:
    """Return the origins that may ask; raise ConfigError for one that is none, or an empty key."""
    from hmoe.serve.http.origins import check_origins

    if api_key == "" or (api_key is None and os.environ.get("HMOE_API_KEY") == ""):
        raise ConfigError("--api-key or HMOE_API_KEY: is empty; leave it out, or unset it, for none")
    return check_origins(allow_origin)


def _warn_of_strangers(host: str, has_key: bool) -> None:
    if not has_key and not host.startswith(("127.", "::1")):
        print_note("anybody who reaches this address may use the model; --api-key asks for a key")


def _make_service(
    opened: "OpenedModel",
    name: str,
    limits: "EngineLimits",
    max_tokens: int | None,
    timeout: float,
    memory: "OffloadForReading | None",
) -> "Service":
    from hmoe.serve.http.service import ServedModel, Service

    offload = None if memory is None else memory.offload
    served = ServedModel(
        opened.model, opened.tokenizer, name, opened.chat_template, opened.begin, opened.folder, offload
    )
    return Service(served, limits, max_tokens or limits.context_length, timeout)


def _print_address(service: "Service", has_key: bool, url: str) -> None:
    typer.echo(
        f"hmoe: {service.served.name} is served at {url}/v1\nnext:\n  {_make_request(service, has_key, url)}"
    )


def _make_request(service: "Service", has_key: bool, url: str) -> str:
    """Return a command that asks the server for a few tokens."""
    served, capacity, prompt = service.served, service.engine.capacity, "She was"
    room = capacity - len([*served.begin, *served.tokenizer.encode([prompt])[0]])
    if room < 1:  # a text without tokens is the one token that begins a document
        room, prompt = capacity - max(1, len(served.begin)), ""
    body = {"model": served.name, "prompt": prompt, "max_tokens": min(32, room, service.max_tokens)}
    # An address that stands for all is none to ask.
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    words = ["curl", f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    if not has_key:
        return shlex.join(words)
    # The key itself is not shown: a shell knows it by the variable's name, if it came from there.
    known = "HMOE_API_KEY" in os.environ
    header = "$HMOE_API_KEY" if known else "KEY"
    return f'{shlex.join(words)} -H "Authorization: Bearer {header}"' + "  # KEY: that of --api-key" * (
        not known
    )


def _write_to_stderr(line: str) -> None:
    # Past Python's stream: a thread that waits there for a full pipe would hold its lock, and so stop all others.
    os.write(2, line.encode())


def open_served_model(
    path: Path, precision: str | None, memory: "OffloadForReading | None" = None
) -> "OpenedModel":
    """Open a model for an engine: without gradients, in this precision or as it is stored, all in memory or not.

    It is read in a thread that then ends: with two sets of OpenMP threads in a process, the engine's would take
    turns with those that reading left behind, and be three times slower.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from hmoe.runs.allocation import allocate_as, allocate_in_memory
    from hmoe.runs.open_model import open_model

    def load() -> "OpenedModel":
        plain = allocate_in_memory if precision is None else allocate_as(getattr(torch, precision))
        opened = open_model(path, print_note, memory or plain)
        opened.model.requires_grad_(False)
        return opened

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(load).result()
