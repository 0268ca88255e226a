"""The application: the routes of the table behind the middleware, with every error as JSON."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from hmoe.serve.http.handlers import ServerState
from hmoe.serve.http.http_error import HTTPError
from hmoe.serve.http.metrics import Metrics
from hmoe.serve.http.middleware import BoundsMiddleware, RequestLimits
from hmoe.serve.http.origins import OriginsMiddleware
from hmoe.serve.http.request_log import RequestRecord
from hmoe.serve.http.routes import ROUTES, Route
from hmoe.serve.http.service import Service


def create_app(
    service: Service,
    limits: RequestLimits,
    connections: Callable[[], int],
    routes: Sequence[Route] = ROUTES,
    log: Callable[[RequestRecord], None] | None = None,
) -> ASGIApp:
    """Return the ASGI application of a served model.

    Args:
        service: the model with its engine.
        limits: bounds of one request.
        connections: tells how many are open.
        routes: what can be asked for.
        log: told of every request that has ended; it must not wait.
    """
    state = ServerState(service, Metrics(), connections)
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    # starlette takes the first route that matches, so paths with a parameter come last.
    for route in sorted(routes, key=lambda route: route.has_parameter):
        app.add_route(route.path, _endpoint(route, state), methods=[route.method])
    handle_errors(app)
    guard = BoundsMiddleware(app, limits, state.metrics, routes, log)
    if not limits.origins:
        return guard
    # Outermost, so that a page may read why the middleware refused its request.
    return OriginsMiddleware(guard, limits.origins, sorted({route.method for route in routes}))


def _endpoint(route: Route, state: ServerState) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await route.handler(request, state)

    return handle


def handle_errors(app: FastAPI) -> None:
    """Answer every error as JSON; one that nobody foresaw reaches the middleware too, which logs it."""

    @app.exception_handler(HTTPError)
    async def answer_refusal(request: Request, error: HTTPError) -> Response:
        return Response(error.body(), error.status, error.headers, "application/json")

    @app.exception_handler(HTTPException)
    async def answer_routing_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method[:20]} {request.url.path[:100]}: {error.detail}"
        refusal = HTTPError(error.status_code, message, headers=dict(error.headers or {}))
        return await answer_refusal(request, refusal)

    @app.exception_handler(Exception)
    async def answer_fault(request: Request, error: Exception) -> Response:
        refusal = HTTPError(500, "the server failed on this request", code="internal_error")
        return await answer_refusal(request, refusal)
