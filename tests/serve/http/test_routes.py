"""There is one table of routes.

What is added to it is routed, bounded, locked, counted and open to pages without another change.
"""

import asyncio
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest
from fastapi import Request, Response

import hmoe
from hmoe.serve.engine.types import EngineLimits
from hmoe.serve.http.app import create_app
from hmoe.serve.http.handlers import ServerState
from hmoe.serve.http.middleware import RequestLimits
from hmoe.serve.http.routes import ROUTES, Route, find_route
from hmoe.serve.http.service import ServedModel, Service
from tests.serve.helpers import CONTEXT, TOKENIZER, model

KEY = {"Authorization": "Bearer k"}


async def repeat(request: Request, state: ServerState) -> Response:
    return Response(request.scope["hmoe.body"] + state.service.served.name.encode())


async def name_part(request: Request, state: ServerState) -> Response:
    return Response(request.path_params["name"])


ADDED = (
    Route("GET", "/open/{name:path}", name_part, needs_key=False),
    Route("GET", "/open/fixed", repeat),
    Route("PUT", "/v1/repeat", repeat, max_body_bytes=10),
    Route("POST", "/v1/repeat", repeat, max_body_bytes=10),
)
ASKED = [
    (("GET", "/open/a/b"), {}, 200, "a/b"),
    (("GET", "/open/fixed"), {}, 401, "invalid_api_key"),
    (("GET", "/open/fixed"), {"headers": KEY}, 200, "small"),
    (("PUT", "/v1/repeat"), {"headers": KEY, "content": b"0123456789"}, 200, "0123456789small"),
    (("POST", "/v1/repeat"), {"headers": KEY, "json": [1]}, 200, "[1]small"),
    (("POST", "/v1/repeat"), {"headers": KEY, "content": b"[1]"}, 415, "application/json"),
    (("POST", "/v1/repeat"), {"headers": KEY, "json": "0123456789"}, 413, "larger than 10 bytes"),
    (("POST", "/v1/repeat"), {"json": 1}, 401, "invalid_api_key"),
    (("GET", "/v1/repeat"), {"headers": KEY}, 405, "Method Not Allowed"),
    (("GET", "/v1/repeated"), {"headers": KEY}, 404, "Not Found"),
]


def test_a_route_is_one_entry_and_its_handler() -> None:
    service = Service(
        ServedModel(model(), TOKENIZER, "small"), EngineLimits(context_length=CONTEXT), CONTEXT, 60
    )
    limits = RequestLimits(api_key="k", origins=("http://page:1",))
    app = create_app(service, limits, lambda: 0, (*ROUTES, *ADDED))

    async def ask_all() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            for (method, path), content, status, text in ASKED:
                answer = await client.request(method, path, **content)  # type: ignore[arg-type]
                assert (answer.status_code, text in answer.text) == (status, True), (
                    method,
                    path,
                    answer.text,
                )
            before = {"Origin": "http://page:1", "Access-Control-Request-Method": "PUT"}
            preflight = await client.options("/v1/repeat", headers=before)
            assert preflight.headers["access-control-allow-methods"] == "GET, POST, PUT"
            return (await client.get("/metrics", headers=KEY)).text

    with service.engine:
        page = asyncio.run(ask_all())
    counts = dict(re.findall(r"hmoe_requests_total\{(.*)\} (\d+)", page))
    assert counts['route="/open/...",status="200"'] == "1"
    assert counts['route="/v1/repeat",status="200"'] == "2"
    assert counts['route="other",status="404"'] == "1"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/completions", "/v1/completions"), ("/v1/models", "/v1/models"), ("/v1/models/", "/v1/models/..."),
        ("/v1/models/a/b", "/v1/models/..."), ("/health", "/health"), ("/health/", None),
        ("/v1/modelsx", None), ("/", None),
    ],
)  # fmt: skip
def test_paths_belong_to_the_route_that_answers_them(path: str, label: str | None) -> None:
    route = find_route(ROUTES, "GET", path)
    assert (route and route.label) == label


def test_only_health_needs_no_key() -> None:
    assert [route.path for route in ROUTES if not route.needs_key] == ["/health"]


def test_the_table_is_the_only_list_of_paths() -> None:
    assert max(Counter((route.method, route.label) for route in ROUTES).values()) == 1
    folder = Path(hmoe.__file__).parent / "serve" / "http"
    for path in folder.glob("*.py"):
        literals = re.findall(r'"(/(?:v1|health|metrics)[^"]*)"', path.read_text())
        assert len(literals) == (len(ROUTES) if path.name == "routes.py" else 0), path.name


def test_the_guide_names_every_route() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "serve.md").read_text()
    for route in ROUTES:
        assert f"`{route.label.replace('...', 'NAME')}`" in guide or f"`{route.method} {route.path}`" in guide
