"""uvicorn with bounds: it has none of its own for slow headers, bodies and readers, nor for connections."""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hmoe.errors import ConfigError
from hmoe.serve.http.app import create_app
from hmoe.serve.http.http_error import HTTPError
from hmoe.serve.http.middleware import RequestLimits
from hmoe.serve.http.request_log import RequestRecord
from hmoe.serve.http.service import Service

_HEADER_BYTES = 32 * 1024
# On closing: how long to take connections that the system has accepted, and to read a request that was sent
# on one.
_BACKLOG_SECONDS, _LAST_REQUEST_SECONDS = 0.1, 1.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits how many connections may be open, and how slow each may be.

    Attributes:
        connections: open at a time; the next are told 503 and closed.
        header_seconds: in which a request's header must have come.
        body_seconds: and then its body.
        idle_seconds: between requests.
        write_seconds: in which the client must have read what waits for it.
        grace_seconds: that open requests get to end after SIGTERM or SIGINT.
    """

    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 30.0
    write_seconds: float = 30.0
    grace_seconds: float = 6.0


class BoundedProtocol(H11Protocol):
    """Speaks HTTP on one connection, which the server looks at from time to time; errors are JSON."""

    limits = ConnectionLimits()

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or turn it away if there are too many."""
        super().connection_made(transport)
        self._phase, self._since = "header", time.monotonic()
        self._last_request = False
        self._written_at = self._since  # when last nothing waited to be read by the client
        if len(self.connections) > self.limits.connections:
            self._refuse(
                HTTPError(503, "too many open connections", code="busy", headers={"Retry-After": "1"})
            )

    def data_received(self, data: bytes) -> None:
        """Read what the client sent, unless the connection is being closed."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._enter(self._awaited())

    def on_response_complete(self) -> None:
        """Begin to wait for the next request; its header's time starts with its first byte."""
        super().on_response_complete()
        self._enter(self._awaited(), again=True)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 cannot read; uvicorn calls this."""
        self._refuse(HTTPError(400, "this is not a valid HTTP request", code="invalid_http"))

    def shutdown(self) -> None:
        """Close the connection, but let a request that may be on its way come, to be answered with 503."""
        if self._phase == "header" and not self._last_request:
            self._last_request = True
            self.loop.call_later(_LAST_REQUEST_SECONDS, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def look(self, now: float) -> None:
        """End the connection if it is too slow."""
        if not self.transport.get_write_buffer_size():
            self._written_at = now
        elif now - self._written_at > self.limits.write_seconds:
            self.transport.abort()
        # The middleware ends a slow body with an answer; a second later is for what is left after one was
        # given.
        seconds = {"header": self.limits.header_seconds, "body": self.limits.body_seconds + 1}.get(
            self._phase
        )
        if seconds is not None and now - self._since > seconds:
            if self._phase == "header" and self.conn.our_state is h11.IDLE:
                self._refuse(
                    HTTPError(408, f"the header did not come within {seconds:g} s", code="header_timeout")
                )
            else:
                self.transport.abort()

    def _awaited(self) -> str:
        """Return what the client is to send: a header, a body, or nothing while it waits or is idle."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return "header"
        return "nothing"

    def _enter(self, phase: str, again: bool = False) -> None:
        if again or phase != self._phase:
            self._phase, self._since = phase, time.monotonic()

    def _refuse(self, refusal: HTTPError) -> None:
        """Answer and close, whatever the client has sent."""
        if self.transport.is_closing():
            return
        # In any other state an answer has begun, and another would become part of it.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal.body()
            head = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            event = h11.Response(status_code=refusal.status, headers=[*head, *refusal.headers.items()])
            self.transport.write(self.conn.send(event) or b"")
            self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
        self._phase = "nothing"
        self.transport.close()


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then lets open requests end for a while.

    Attributes:
        ready: called with the address, such as http://127.0.0.1:8000, when connections are taken.
    """

    def __init__(
        self,
        service: Service,
        guard: RequestLimits,
        limits: ConnectionLimits,
        ready: Callable[[str], None] = lambda address: None,
        log: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        # uvicorn makes the protocols itself, so their limits travel in a class.
        protocol = type("Protocol", (BoundedProtocol,), {"limits": limits})
        super().__init__(
            uvicorn.Config(
                create_app(service, guard, lambda: len(self.server_state.connections), log=log),
                http=protocol, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="critical",
                access_log=False, proxy_headers=False, server_header=False, h11_max_incomplete_event_size=_HEADER_BYTES,
                timeout_keep_alive=round(limits.idle_seconds),
                timeout_graceful_shutdown=round(limits.grace_seconds + 2),
            )
        )  # fmt: skip
        self._service, self._limits, self.ready = service, limits, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `ready` with the address."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        """End connections that are too slow, twice a second; uvicorn calls this ten times a second."""
        if counter % 5 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                connection.look(now)  # type: ignore[union-attr]
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests; those that are left after the grace period are told 503."""
        self._service.engine.close()
        timer = threading.Timer(
            self._limits.grace_seconds, self._service.engine.close, kwargs={"give_up": True}
        )
        timer.start()
        try:
            await asyncio.sleep(_BACKLOG_SECONDS)
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            self._service.engine.close(give_up=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, but do not raise them again: ending on one is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        handlers = {name: signal.signal(name, self.handle_exit) for name in signals}  # those of before
        try:
            yield
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End in order, as soon as the running tick is over."""
        self.should_exit = True


def open_listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket on an address of this machine; port 0 takes any that is free.

    Raises:
        ConfigError: if the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            # Else the port of a server that has just ended could not be had for a minute.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"host = {host}, port = {port}: {reason}", argument=("host", "port")) from None
    return listening
