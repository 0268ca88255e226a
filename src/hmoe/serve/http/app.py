"""The HTTP routes, over a `Service`."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from hmoe.serve.http.http_error import Refusal, to_json
from hmoe.serve.http.metrics import Metrics
from hmoe.serve.http.middleware import Guard, GuardLimits
from hmoe.serve.http.origins import Origins
from hmoe.serve.http.schema import ChatRequest, CompletionRequest, parse
from hmoe.serve.http.schema import Request as Asked
from hmoe.serve.http.service import Exchange, Service

_LARGE_BODY_BYTES = 65536  # what is parsed beside the event loop
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Kind = TypeVar("Kind", bound=Asked)


def json_response(content: Any, status: int = 200) -> Response:
    """JSON."""
    return Response(to_json(content), status, media_type="application/json")


class EventStream(Response):
    """Server-sent events of an exchange whose first events are known."""

    media_type = "text/event-stream"

    def __init__(self, chunks: "Chunks") -> None:
        super().__init__(headers=_STREAM_HEADERS)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send chunks as they come; the client's going away ends the work."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        watch = asyncio.create_task(give_up_on_disconnect(receive, self._chunks.exchange))
        try:
            await send(start)
            async for data in self._chunks.all():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watch.cancel()
            self._chunks.exchange.give_up()


class Chunks:
    """The bytes of a stream."""

    def __init__(self, exchange: Exchange, service: Service, include_usage: bool) -> None:
        self.exchange, self._service, self._include_usage = exchange, service, include_usage
        self._batches = exchange.batches()
        self._first: bytes | None = None

    async def begin(self) -> None:
        """Wait for the first text, so that what fails before it still has its own HTTP status."""
        async for batch in self._batches:
            self._first = self._encode(batch)
            return

    async def all(self) -> Any:
        """Every chunk; a failure is told as one."""
        if self._first is None:  # the client went away
            return
        yield self._first
        try:
            async for batch in self._batches:
                yield self._encode(batch)
        except Refusal as refusal:
            yield b"data: " + refusal.body() + b"\n\n"
            return
        if self._include_usage:
            yield b"data: " + to_json(self.exchange.shape.end(self.exchange.numbers(self._service.served))) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _encode(self, batch: list[Any]) -> bytes:
        extra = {"usage": None} if self._include_usage else {}
        return b"".join(b"data: " + to_json(chunk | extra) + b"\n\n" for chunk in self.exchange.shape.chunk(batch))


async def give_up_on_disconnect(receive: Receive, exchange: Exchange) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.give_up()


async def answer(request: Request, exchange: Exchange, asked: Asked, service: Service) -> Response:
    """Wait for the answer, or for its beginning if it is streamed."""
    watch = asyncio.create_task(give_up_on_disconnect(request.receive, exchange))
    try:
        if asked.stream:
            chunks = Chunks(exchange, service, asked.include_usage)
            await chunks.begin()
            return EventStream(chunks)
        events = [event async for batch in exchange.batches() for event in batch]
        whole = exchange.shape.whole(events)
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    return json_response(whole | exchange.numbers(service.served))


def create_app(service: Service, limits: GuardLimits, connections: Callable[[], int]) -> ASGIApp:
    """The application: routes behind their guard.

    Args:
        service: what is served.
        limits: bounds of one request.
        connections: how many are open.
    """
    metrics = Metrics()
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    async def read(kind: type[Kind], request: Request) -> Kind:
        body: bytes = request.scope["hmoe.body"]
        return await asyncio.to_thread(parse, kind, body) if len(body) > _LARGE_BODY_BYTES else parse(kind, body)

    def route(path: str, method: str) -> Callable[[Callable[[Request], Awaitable[Response]]], None]:
        def register(handler: Callable[[Request], Awaitable[Response]]) -> None:
            app.add_route(path, handler, methods=[method])

        return register

    @route("/v1/completions", "POST")
    async def completions(request: Request) -> Response:
        asked = await read(CompletionRequest, request)
        return await answer(request, await service.complete(asked), asked, service)

    @route("/v1/chat/completions", "POST")
    async def chat_completions(request: Request) -> Response:
        asked = await read(ChatRequest, request)
        return await answer(request, await service.chat(asked), asked, service)

    @route("/v1/models", "GET")
    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [service.describe()]})

    @route("/v1/models/{name:path}", "GET")
    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.served.name:
            raise Refusal(404, f"model: only {service.served.name!r} is served here", "model", "model_not_found")
        return json_response(service.describe())

    @route("/health", "GET")
    async def health(request: Request) -> Response:
        return json_response(service.health(), 200 if service.engine.alive else 503)

    @route("/metrics", "GET")
    async def prometheus(request: Request) -> Response:
        page = metrics.page(service.engine, connections())
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    handle_errors(app)
    guard = Guard(app, limits, metrics)
    return Origins(guard, limits.origins) if limits.origins else guard


def handle_errors(app: FastAPI) -> None:
    """Every error is JSON; one that nobody foresaw reaches the guard too, which logs it."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return Response(error.body(), error.status, error.headers, "application/json")

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        message = f"{request.method[:20]} {request.url.path[:100]}: {error.detail}"
        return await refused(request, Refusal(error.status_code, message, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return await refused(request, Refusal(500, "the server failed on this request", code="internal_error"))
