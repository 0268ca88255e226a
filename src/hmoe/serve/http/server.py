"""uvicorn, kept in bounds: it has no limit of its own for slow headers, slow bodies, slow readers or connections."""

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
from hmoe.serve.http.http_error import Refusal
from hmoe.serve.http.middleware import GuardLimits
from hmoe.serve.http.service import Service

_HEADER_BYTES = 32 * 1024
_BACKLOG_SECONDS = 0.1  # on closing, to take the connections that the system has taken already
_LAST_SECONDS = 1.0  # and to read a request that has been sent on one


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of connections.

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
    """A connection that `Server` looks at from time to time, and that tells errors as JSON."""

    limits = ConnectionLimits()

    def connection_made(self, transport: Any) -> None:
        """Turn it away if there are too many."""
        super().connection_made(transport)
        self._phase, self._since = "header", time.monotonic()
        self._last = False
        self._written = self._since  # when nothing waited to be read
        if len(self.connections) > self.limits.connections:
            self._refuse(Refusal(503, "too many open connections", code="busy", headers={"Retry-After": "1"}))

    def data_received(self, data: bytes) -> None:
        """Nothing is read from a connection that is being closed."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._enter(self._reading())

    def on_response_complete(self) -> None:
        """The next header's time starts with its first byte."""
        super().on_response_complete()
        self._enter(self._reading(), again=True)

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read."""
        self._refuse(Refusal(400, "this is not a valid HTTP request", code="invalid_http"))

    def shutdown(self) -> None:
        """A connection whose request may be on its way hears the answer to it, which is 503."""
        if self._phase == "header" and not self._last:
            self._last = True
            self.loop.call_later(_LAST_SECONDS, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def look(self, now: float) -> None:
        """End the connection if it is too slow."""
        if not self.transport.get_write_buffer_size():
            self._written = now
        elif now - self._written > self.limits.write_seconds:
            self.transport.abort()
        seconds = {"header": self.limits.header_seconds, "body": self.limits.body_seconds + 1}.get(self._phase)
        if seconds is not None and now - self._since > seconds:
            if self._phase == "header" and self.conn.our_state is h11.IDLE:
                self._refuse(Refusal(408, f"the header did not come within {seconds:g} s", code="header_timeout"))
            else:
                self.transport.abort()

    def _reading(self) -> str:
        """What it waits for from the client."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return "header"
        return "nothing"

    def _enter(self, phase: str, again: bool = False) -> None:
        if again or phase != self._phase:
            self._phase, self._since = phase, time.monotonic()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close, whatever was sent."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal.body()
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
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
        guard: GuardLimits,
        limits: ConnectionLimits,
        ready: Callable[[str], None] = lambda address: None,
    ) -> None:
        protocol = type("Protocol", (BoundedProtocol,), {"limits": limits})
        super().__init__(
            uvicorn.Config(
                create_app(service, guard, lambda: len(self.server_state.connections)),
                http=protocol, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="critical",
                access_log=False, proxy_headers=False, server_header=False, h11_max_incomplete_event_size=_HEADER_BYTES,
                timeout_keep_alive=round(limits.idle_seconds), timeout_graceful_shutdown=round(limits.grace_seconds + 2),
            )
        )  # fmt: skip
        self._service, self._limits, self.ready = service, limits, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say the address."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        """Twice a second, look for connections that are too slow."""
        if counter % 5 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                connection.look(now)  # type: ignore[union-attr]
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new requests; after the grace those that are left are told 503."""
        self._service.engine.close()
        last = threading.Timer(self._limits.grace_seconds, self._service.engine.close, kwargs={"give_up": True})
        last.start()
        try:
            await asyncio.sleep(_BACKLOG_SECONDS)
            await super().shutdown(sockets)
        finally:
            last.cancel()
            self._service.engine.close(give_up=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a signal is not raised again afterwards: ending on it is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, in order."""
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address of this machine; port 0 takes any that is free.

    Raises:
        ConfigError: if it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}") from None
    return listening
