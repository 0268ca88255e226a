"""An answer that is sent while it is being computed, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from hmoe.serve.engine.types import SequenceEvent
from hmoe.serve.http.http_error import HTTPError, encode_response_json
from hmoe.serve.http.service import Exchange, Service

# Proxies, of which nginx knows the second field, must hand on every event at once.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends a response of server-sent events, of which the first are known."""

    media_type = "text/event-stream"

    def __init__(self, chunks: "StreamChunks") -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]  # starlette's, of the empty body it was given
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send chunks as they come; if the client goes away, the engine stops working for it."""
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


class StreamChunks:
    """Encodes the events of one stream as bytes, each chunk as `data: JSON`."""

    def __init__(self, exchange: Exchange, service: Service, include_usage: bool) -> None:
        self.exchange, self._service, self._include_usage = exchange, service, include_usage
        self._batches = exchange.batches()
        self._first: bytes | None = None

    async def begin(self) -> None:
        """Wait for the first text, so that what fails before it still has its own HTTP status."""
        async for batch in self._batches:
            self._first = self._encode(batch)
            return

    async def all(self) -> AsyncIterator[bytes]:
        """Yield every chunk; a failure after the first becomes a chunk, because the status has been sent."""
        if self._first is None:  # the client went away
            return
        yield self._first
        try:
            async for batch in self._batches:
                yield self._encode(batch)
        except HTTPError as refusal:
            yield b"data: " + refusal.body() + b"\n\n"
            return
        if self._include_usage:
            numbers = self.exchange.numbers(self._service.served)
            yield b"data: " + encode_response_json(self.exchange.formatter.end(numbers)) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _encode(self, batch: list[SequenceEvent]) -> bytes:
        # As OpenAI has it: if the last chunk will tell the usage, all others say that they do not.
        extra: dict[str, Any] = {"usage": None} if self._include_usage else {}
        chunks = self.exchange.formatter.chunk(batch)
        return b"".join(b"data: " + encode_response_json(chunk | extra) + b"\n\n" for chunk in chunks)


async def give_up_on_disconnect(receive: Receive, exchange: Exchange) -> None:
    """Wait until the client is gone, then stop the engine's work for it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.give_up()
