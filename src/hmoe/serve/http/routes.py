"""The table of the server's routes, which the application, the middleware, the metrics and CORS all read."""

from collections.abc import Sequence
from dataclasses import dataclass

from hmoe.serve.http import handlers
from hmoe.serve.http.handlers import Handler

OTHER_LABEL = "other"  # in metrics, for paths that no route has: strangers must not make new time series


@dataclass(frozen=True)
class Route:
    """Joins an address of the server to what answers it, and to what a request to it must satisfy.

    Attributes:
        method: of HTTP; where it is GET, HEAD is answered too.
        path: as starlette writes it; a parameter, such as {name:path}, may stand at its end.
        handler: makes the response.
        needs_key: the server's API key is demanded, if it has one.
        json_only: a POST must say that its body is JSON.
        max_body_bytes: largest body; None takes the server's own limit.
    """

    method: str
    path: str
    handler: Handler
    needs_key: bool = True
    json_only: bool = True
    max_body_bytes: int | None = None

    @property
    def has_parameter(self) -> bool:
        """Tell whether the path ends in a parameter."""
        return "{" in self.path

    @property
    def label(self) -> str:
        """Name of the route in metrics: its path, with `...` for the parameter."""
        return self._prefix + "..." if self.has_parameter else self.path

    def matches(self, path: str) -> bool:
        """Tell whether a request's path belongs to this route."""
        return path.startswith(self._prefix) if self.has_parameter else path == self.path

    @property
    def _prefix(self) -> str:
        return self.path.partition("{")[0]


ROUTES = (
    Route("POST", "/v1/completions", handlers.complete_text),
    Route("POST", "/v1/chat/completions", handlers.complete_chat),
    Route("GET", "/v1/models", handlers.list_models),
    Route("GET", "/v1/models/{name:path}", handlers.show_model, json_only=False),
    Route("GET", "/health", handlers.report_health, needs_key=False),  # load balancers have no key
    Route("GET", "/metrics", handlers.report_metrics),
)


def find_route(routes: Sequence[Route], method: str, path: str) -> Route | None:
    """Return the route of a path, or None; of several one without a parameter, then one with the method."""
    matching = [route for route in routes if route.matches(path)]
    return min(matching, key=lambda route: (route.has_parameter, route.method != method), default=None)
