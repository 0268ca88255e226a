"""What every request passes before and after its route: bounds, the API key, errors as JSON, counts."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmoe.serve.http.http_error import HTTPError
from hmoe.serve.http.metrics import Metrics
from hmoe.serve.http.request_log import RequestRecord
from hmoe.serve.http.routes import OTHER_LABEL, Route, find_route

_LOG = logging.getLogger("hmoe.serve")
_MAX_HEADERS, _MAX_HEADER_BYTES, _MAX_TARGET_BYTES = 100, 32 * 1024, 8 * 1024
_CLOSE = {"Connection": "close"}  # the body was not read, and must not be taken for the next request


@dataclass(frozen=True)
class RequestLimits:
    """Limits what one request may be, and says what it must show.

    Attributes:
        body_bytes: of a request's body, where its route has no limit of its own.
        body_seconds: in which the body must have come.
        api_key: demanded by every route that needs one; None: no key.
        origins: of web pages that browsers may let ask; "*" is any.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    api_key: str | None = None
    origins: tuple[str, ...] = ()


class BoundsMiddleware:
    """Wraps an ASGI application, for which it reads the body and hands it on as scope["hmoe.body"]."""

    def __init__(
        self,
        app: ASGIApp,
        limits: RequestLimits,
        metrics: Metrics,
        routes: Sequence[Route],
        log: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self._app, self._limits, self._metrics, self._routes = app, limits, metrics, routes
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through; whatever goes wrong with it is answered as JSON."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = find_route(self._routes, scope["method"], scope["path"])
        reply = _Reply(send, self._metrics)
        try:
            self._check(scope, route)
            scope["hmoe.body"] = await self._read_body(scope, receive, route)
            await self._app(scope, receive, reply.send)
        except HTTPError as refusal:
            await reply.refuse(refusal)
        except Exception:
            _LOG.exception("a request failed: %s %r", scope["method"], scope["path"][:100])
            await reply.refuse(HTTPError(500, "the server failed on this request", code="internal_error"))
        finally:
            reply.count(route.label if route else OTHER_LABEL)
            if self._log is not None:
                exchange = scope.get("hmoe.exchange")  # of a request that was given to the engine
                tokens = (None, None) if exchange is None else exchange.count_tokens()
                self._log(RequestRecord(scope["method"], scope["path"], reply.status, reply.seconds, *tokens))

    def _check(self, scope: Scope, route: Route | None) -> None:
        """Raise Refusal 400, 401, 413, 414, 415 or 431 for what the header alone forbids.

        The order matters: a client without the key does not learn what the routes would have taken.
        """
        headers = _group_headers(scope)
        self._check_framing(scope, headers)
        if route is None or route.needs_key:
            self._check_key(headers)
        # A small compressed body may become gigabytes.
        if b"content-encoding" in headers:
            raise HTTPError(415, "Content-Encoding: compressed bodies are not read", headers=_CLOSE)
        limit = self._max_body_bytes(route)
        for size in headers.get(b"content-length", []):
            # No limit has 18 digits, and int() of thousands of them is slow or raises.
            if len(size) > 18 or int(size) > limit:
                raise _body_too_large(limit)
        # A browser sends a form or plain text to any server for any page, but asks the server before it sends
        # JSON.
        if scope["method"] == "POST" and route is not None and route.json_only:
            media_type = headers.get(b"content-type", [b""])[0].split(b";")[0].strip().lower()
            if media_type != b"application/json":
                raise HTTPError(415, "Content-Type: must be application/json", code="unsupported_media_type")

    def _check_framing(self, scope: Scope, headers: Mapping[bytes, list[bytes]]) -> None:
        """Raise Refusal for what could be read in two ways, or is larger than any client needs."""
        # 4 bytes more for the colon, the space and the end of the line.
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if len(scope["headers"]) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
            most = f"{_MAX_HEADERS} header fields, {_MAX_HEADER_BYTES} bytes"
            raise HTTPError(431, f"more than {most}", code="header_too_large", headers=_CLOSE)
        if len(scope["raw_path"]) + len(scope["query_string"]) > _MAX_TARGET_BYTES:
            message = f"the path is longer than {_MAX_TARGET_BYTES} bytes"
            raise HTTPError(414, message, code="path_too_long", headers=_CLOSE)
        if scope["http_version"] not in ("1.0", "1.1"):
            raise HTTPError(
                400, "HTTP: versions 1.0 and 1.1 are spoken here", code="invalid_http", headers=_CLOSE
            )
        # With both, a proxy and this server may disagree where the request ends: the rest would be a smuggled
        # one.
        if b"content-length" in headers and b"transfer-encoding" in headers:
            message = "Content-Length and Transfer-Encoding in one request"
            raise HTTPError(400, message, code="invalid_http", headers=_CLOSE)
        if len(headers.get(b"host", [])) > 1:
            raise HTTPError(400, "more than one Host", code="invalid_http", headers=_CLOSE)

    def _check_key(self, headers: Mapping[bytes, list[bytes]]) -> None:
        if self._limits.api_key is None:
            return
        given = headers.get(b"authorization", [])
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        expected = self._limits.api_key.encode()
        # Compared in constant time: how long a comparison takes must not tell how much of the key is right.
        if not (hmac.compare_digest(key.strip(), expected) and scheme.lower() == b"bearer"):
            message = "Authorization: missing or wrong, must be Bearer with the server's API key"
            raise HTTPError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _max_body_bytes(self, route: Route | None) -> int:
        if route is None or route.max_body_bytes is None:
            return self._limits.body_bytes
        return route.max_body_bytes

    async def _read_body(self, scope: Scope, receive: Receive, route: Route | None) -> bytes:
        """Return the whole body, or raise Refusal 408 or 413."""
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return b""
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await _receive_body(receive, self._max_body_bytes(route))
        except TimeoutError:
            message = f"the body did not come within {self._limits.body_seconds:g} s"
            raise HTTPError(408, message, code="body_timeout", headers=_CLOSE) from None


async def _receive_body(receive: Receive, limit: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPError(400, "the client went away")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:  # a chunked body does not say its size before
            raise _body_too_large(limit)
    return bytes(body)


def _body_too_large(limit: int) -> HTTPError:
    return HTTPError(413, f"the body is larger than {limit} bytes", code="body_too_large")


def _group_headers(scope: Scope) -> dict[bytes, list[bytes]]:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    return headers


class _Reply:
    """Sends to one client, and notes what was sent and when.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, send: Send, metrics: Metrics) -> None:
        self._send, self._metrics = send, metrics
        self._start = time.monotonic()
        self.status = 499  # the client went away before an answer
        self._begun = self._text_sent = self._ended = False

    async def send(self, message: Message) -> None:
        """Send a message of the application, and note what it was."""
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
        elif message.get("body") and not self._text_sent and self.status == 200:
            self._text_sent = True
            self._metrics.first_token_seconds.observe(time.monotonic() - self._start)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._ended = True
        await self._send(message)

    async def refuse(self, refusal: HTTPError) -> None:
        """Answer with the error if nothing was answered yet; else break off, for the client to see."""
        if self._ended:
            return
        if self._begun:
            raise refusal
        body = refusal.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    def count(self, label: str) -> None:
        """Add the request to the metrics of its route."""
        self._metrics.count_request(label, self.status, self.seconds)

    @property
    def seconds(self) -> float:
        """Seconds since the request's header came."""
        return time.monotonic() - self._start
