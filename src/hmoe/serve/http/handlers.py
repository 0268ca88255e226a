"""What answers each route: a function from the request, and what the server holds, to a response."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request, Response

from hmoe.serve.http.event_stream import EventStream, StreamChunks, give_up_on_disconnect
from hmoe.serve.http.http_error import HTTPError, encode_response_json
from hmoe.serve.http.metrics import Metrics
from hmoe.serve.http.schema import ChatRequest, CompletionRequest, parse_request
from hmoe.serve.http.schema import GenerationRequest as RequestFields
from hmoe.serve.http.service import Exchange, Service

_LARGE_BODY_BYTES = 65536  # larger ones are parsed in a thread, so that other clients need not wait for it
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # by which Prometheus knows its text format

Body = TypeVar("Body", bound=RequestFields)


@dataclass(frozen=True)
class ServerState:
    """Holds what handlers read besides the request.

    Attributes:
        service: the served model with its engine.
        metrics: counts of requests and their times.
        count_connections: tells how many connections are open.
    """

    service: Service
    metrics: Metrics
    count_connections: Callable[[], int]


Handler = Callable[[Request, ServerState], Awaitable[Response]]


async def complete_text(request: Request, state: ServerState) -> Response:
    """Answer POST /v1/completions: continuations of texts or token ids."""
    fields = await _read_fields(CompletionRequest, request)
    return await send_answer(request, await state.service.complete(fields), fields, state.service)


async def complete_chat(request: Request, state: ServerState) -> Response:
    """Answer POST /v1/chat/completions: the next message of a conversation."""
    fields = await _read_fields(ChatRequest, request)
    return await send_answer(request, await state.service.chat(fields), fields, state.service)


async def list_models(request: Request, state: ServerState) -> Response:
    """Answer GET /v1/models: a list of the one model."""
    return make_json_response({"object": "list", "data": [state.service.describe()]})


async def show_model(request: Request, state: ServerState) -> Response:
    """Answer GET /v1/models/NAME, with 404 for another name than the served model's."""
    name = state.service.served.name
    if request.path_params["name"] != name:
        raise HTTPError(404, f"model: only {name!r} is served here", "model", "model_not_found")
    return make_json_response(state.service.describe())


async def report_health(request: Request, state: ServerState) -> Response:
    """Answer GET /health, with 503 when no requests are taken any more."""
    return make_json_response(state.service.health(), 200 if state.service.engine.alive else 503)


async def report_metrics(request: Request, state: ServerState) -> Response:
    """Answer GET /metrics in Prometheus' text format."""
    page = state.metrics.page(state.service.engine, state.count_connections(), state.service.served.offload)
    return Response(page, media_type=_METRICS_TYPE)


async def send_answer(
    request: Request, exchange: Exchange, fields: RequestFields, service: Service
) -> Response:
    """Wait for the answer, or for its beginning if it is streamed."""
    request.scope["hmoe.exchange"] = exchange  # for the request log
    watch = asyncio.create_task(give_up_on_disconnect(request.receive, exchange))
    try:
        if fields.stream:
            chunks = StreamChunks(exchange, service, fields.include_usage)
            await chunks.begin()
            return EventStream(chunks)
        events = [event async for batch in exchange.batches() for event in batch]
        whole = exchange.formatter.whole(events)
    finally:
        # The stream watches its client itself; only one task at a time may call receive().
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    return make_json_response(whole | exchange.numbers(service.served))


def make_json_response(content: Any, status: int = 200) -> Response:
    """Return a response whose body is the content as JSON."""
    return Response(encode_response_json(content), status, media_type="application/json")


async def _read_fields(kind: type[Body], request: Request) -> Body:
    body: bytes = request.scope["hmoe.body"]  # read by the middleware, within its bounds
    return (
        await asyncio.to_thread(parse_request, kind, body)
        if len(body) > _LARGE_BODY_BYTES
        else parse_request(kind, body)
    )
