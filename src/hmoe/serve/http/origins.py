"""Web pages of other addresses: which origins a browser may let ask (CORS)."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from hmoe.errors import ConfigError
from hmoe.serve.http.http_error import Refusal

_NEWER = {
    "allow_private_network": True
}  # a public page that was let in may ask this machine; not every starlette has it


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """As browsers send them: scheme://host, perhaps :port; or *.

    Raises:
        ConfigError: naming the one that no browser sends.
    """
    for origin in origins:
        if origin == "*" or re.fullmatch(
            r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:,*A-Z]+)(:[0-9]{1,5})?", origin
        ):
            continue
        near = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\s,]+)", origin)
        nearest = near[1].lower() if near else f"http://{origin.split('/')[0] or 'localhost:3000'}"
        raise ConfigError(
            f"--allow-origin {origin}: must be * or scheme://host[:port] without a path; nearest is {nearest}"
        )
    return tuple(origins)


class Origins(CORSMiddleware):
    """Answers a browser's question before a request, and marks the answers, errors too, that its page may read."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        newer: dict[str, Any] = {
            name: on for name, on in _NEWER.items() if name in inspect.signature(CORSMiddleware).parameters
        }
        super().__init__(
            app, origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=("Retry-After",), **newer
        )  # fmt: skip

    def preflight_response(self, request_headers: Headers) -> Response:
        """As starlette's, but a refusal is JSON."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        origin = request_headers["origin"][:100]
        refusal = Refusal(
            400, f"Origin: {origin!r} or what it asks for is not allowed; see --allow-origin", code="invalid_origin"
        )
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return Response(refusal.body(), 400, headers, "application/json")
