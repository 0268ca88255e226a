"""Web pages of other addresses may ask if they are let in, and only then."""

import pytest

from hmoe.errors import ConfigError
from hmoe.serve.http.origins import check_origins
from tests.serve.helpers import Live


@pytest.mark.parametrize(
    "origin", ["*", "http://localhost:3000", "https://a.example", "chrome-extension://abc", "http://[::1]:80"]
)
def test_origins_as_browsers_send_them(origin: str) -> None:
    assert check_origins([origin]) == (origin,)


@pytest.mark.parametrize("origin", ["http://a/", "a.example", "http://A.example", "", "http://a:1/x?y"])
def test_other_origins_are_refused_with_one_that_is_taken(origin: str) -> None:
    with pytest.raises(ConfigError, match="nearest is ") as refused:
        check_origins([origin])
    assert check_origins([str(refused.value).rpartition("nearest is ")[2]])


def test_a_page_of_an_allowed_origin_may_ask() -> None:
    page, allow = {"Origin": "http://page:1"}, "access-control-allow-origin"
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    with Live(origins=("http://page:1",), api_key="k") as live:
        key = {**page, "Authorization": "Bearer k"}
        before = live._client.options("/v1/chat/completions", headers={**page, **asks})
        assert (before.status_code, before.headers[allow]) == (200, "http://page:1")
        assert "authorization" in before.headers["access-control-allow-headers"]
        answers = [
            live.post("/v1/completions", {"prompt": "x", "max_tokens": 1, "stream": stream}, **key)
            for stream in (False, True)
        ]
        answers += [
            live.post("/v1/completions", {}, **key),
            live.post("/v1/completions", {}, **page),
            live.get("/none", **key),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400, 401, 404]
        assert {answer.headers[allow] for answer in answers} == {"http://page:1"}
        other = live._client.options("/v1/models", headers={"Origin": "http://other", **asks})
        assert (other.status_code, allow in other.headers) == (400, False)
        assert "http://other" in other.json()["error"]["message"]
        assert allow not in live.post("/v1/completions", {}, Origin="http://other").headers


@pytest.mark.parametrize("origin", ["http://*.x.com", "http://a,http://b"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        check_origins([origin])


def test_pages_of_other_origins_may_not_ask_unless_let_in(live: Live) -> None:
    asks = {"Origin": "http://page:1", "Access-Control-Request-Method": "GET"}
    assert live._client.options("/v1/models", headers=asks).status_code == 405
    assert "access-control-allow-origin" not in live.get("/health", Origin="http://page:1").headers
