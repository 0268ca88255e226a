"""Which web pages of other addresses a browser may let ask (CORS)."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from hmoe.errors import ConfigError
from hmoe.serve.http.http_error import HTTPError

# A public page that was let in may ask a private network's machine. Not every starlette has this option.
_NEWER_OPTIONS = {"allow_private_network": True}


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Return the origins if all are as browsers send them: scheme://host, perhaps :port; or *.

    Raises:
        ConfigError: for one that no browser sends, with the nearest that one does.
    """
    for origin in origins:
        if origin == "*" or re.fullmatch(
            r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:,*A-Z]+)(:[0-9]{1,5})?", origin
        ):
            continue
        beginning = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\s,]+)", origin)
        nearest = beginning[1].lower() if beginning else f"http://{origin.split('/')[0] or 'localhost:3000'}"
        raise ConfigError(
            f"allow_origin = {origin}: must be * or scheme://host[:port] without a path; nearest is {nearest}",
            argument="allow_origin",
        )
    return tuple(origins)


class OriginsMiddleware(CORSMiddleware):
    """Answers what a browser asks before a request, and marks answers and errors that its page may read."""

    def __init__(self, app: ASGIApp, origins: Sequence[str], methods: Sequence[str]) -> None:
        known = inspect.signature(CORSMiddleware).parameters
        newer: dict[str, Any] = {name: value for name, value in _NEWER_OPTIONS.items() if name in known}
        # Any header is allowed: clients send their own, such as X-Stainless-Lang of OpenAI's.
        super().__init__(
            app, origins, allow_methods=methods, allow_headers=("*",), expose_headers=("Retry-After",), **newer
        )  # fmt: skip

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer as starlette does, but with a refusal as JSON."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        origin = request_headers["origin"][:100]
        message = f"Origin: {origin!r} or what it asks for is not among the allowed origins of this server"
        refusal = HTTPError(400, message, code="invalid_origin")
        # Length and type were those of starlette's own text.
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return Response(refusal.body(), 400, headers, "application/json")
