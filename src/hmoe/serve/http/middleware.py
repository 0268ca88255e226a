"""What every request passes before and after its route: bounds, the API key, errors as JSON, counts."""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmoe.serve.http.http_error import Refusal
from hmoe.serve.http.metrics import Metrics

_LOG = logging.getLogger("hmoe.serve")
_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
_MAX_HEADERS, _MAX_HEADER_BYTES, _MAX_TARGET_BYTES = 100, 32 * 1024, 8 * 1024
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class GuardLimits:
    """Bounds of one request.

    Attributes:
        body_bytes: of a request's body.
        body_seconds: in which the body must have come.
        api_key: demanded by every route except /health; None: no key.
        origins: of web pages that browsers may let ask; "*" is any.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    api_key: str | None = None
    origins: tuple[str, ...] = ()


class Guard:
    """An ASGI application around another; the body is read here and handed on as scope["hmoe.body"]."""

    def __init__(self, app: ASGIApp, limits: GuardLimits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; whatever goes wrong is answered as JSON."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = _Watched(send, self._metrics)
        try:
            self._check(scope)
            scope["hmoe.body"] = await self._body(scope, receive)
            await self._app(scope, receive, watched.send)
        except Refusal as refusal:
            await watched.refuse(refusal)
        except Exception:
            _LOG.exception("a request failed: %s %r", scope["method"], scope["path"][:100])
            await watched.refuse(Refusal(500, "the server failed on this request", code="internal_error"))
        finally:
            watched.count(scope["path"])

    def _check(self, scope: Scope) -> None:
        """Header and key.

        Raises:
            Refusal: 400, 401, 413, 415 or 431.
        """
        self._check_framing(scope, headers := _by_name(scope))
        self._check_key(scope, headers)
        if b"content-encoding" in headers:
            raise Refusal(415, "Content-Encoding: compressed bodies are not read", headers=_CLOSE)
        for size in headers.get(b"content-length", []):
            if len(size) > 18 or int(size) > self._limits.body_bytes:
                raise self._too_large()
        if scope["method"] == "POST" and scope["path"] in _ROUTES:
            kind = headers.get(b"content-type", [b""])[0].split(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Refusal(415, "Content-Type: must be application/json", code="unsupported_media_type")

    def _check_framing(self, scope: Scope, headers: Mapping[bytes, list[bytes]]) -> None:
        """What could be read in two ways, or is larger than any client needs."""
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if len(scope["headers"]) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
            most = f"{_MAX_HEADERS} header fields, {_MAX_HEADER_BYTES} bytes"
            raise Refusal(431, f"more than {most}", code="header_too_large", headers=_CLOSE)
        if len(scope["raw_path"]) + len(scope["query_string"]) > _MAX_TARGET_BYTES:
            raise Refusal(
                414, f"the path is longer than {_MAX_TARGET_BYTES} bytes", code="path_too_long", headers=_CLOSE
            )
        if scope["http_version"] not in ("1.0", "1.1"):
            raise Refusal(400, "HTTP: versions 1.0 and 1.1 are spoken here", code="invalid_http", headers=_CLOSE)
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise Refusal(
                400, "Content-Length and Transfer-Encoding in one request", code="invalid_http", headers=_CLOSE
            )
        if len(headers.get(b"host", [])) > 1:
            raise Refusal(400, "more than one Host", code="invalid_http", headers=_CLOSE)

    def _check_key(self, scope: Scope, headers: Mapping[bytes, list[bytes]]) -> None:
        if self._limits.api_key is None or scope["path"] == "/health":
            return
        given = headers.get(b"authorization", [])
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        expected = self._limits.api_key.encode()
        if not (hmac.compare_digest(key.strip(), expected) and scheme.lower() == b"bearer"):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refusal(
                401, "Authorization: Bearer with the server's API key", code="invalid_api_key", headers=challenge
            )

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self._limits.body_bytes} bytes", code="body_too_large")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it.

        Raises:
            Refusal: 408 or 413.
        """
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return b""
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._read(receive)
        except TimeoutError:
            late = f"the body did not come within {self._limits.body_seconds:g} s"
            raise Refusal(408, late, code="body_timeout", headers=_CLOSE) from None

    async def _read(self, receive: Receive) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the client went away")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limits.body_bytes:
                raise self._too_large()
        return bytes(body)


def _by_name(scope: Scope) -> dict[bytes, list[bytes]]:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    return headers


class _Watched:
    """A `send` that knows what was sent, and when."""

    def __init__(self, send: Send, metrics: Metrics) -> None:
        self._send, self._metrics = send, metrics
        self._start = time.monotonic()
        self._status = 499  # the client went away before an answer
        self._begun = self._shown = self._ended = False

    async def send(self, message: Message) -> None:
        """Hand on."""
        if message["type"] == "http.response.start":
            self._begun, self._status = True, message["status"]
        elif message.get("body") and not self._shown and self._status == 200:
            self._shown = True
            self._metrics.first_token_seconds.observe(time.monotonic() - self._start)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._ended = True
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with the error, if nothing was answered yet; else break the answer off, for the client to see."""
        if self._ended:
            return
        if self._begun:
            raise refusal
        body = refusal.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    def count(self, path: str) -> None:
        """For the metrics."""
        route = path if path in _ROUTES else "/v1/models/..." if path.startswith("/v1/models/") else "other"
        self._metrics.requests[route, self._status] += 1
        self._metrics.request_seconds.observe(time.monotonic() - self._start)
