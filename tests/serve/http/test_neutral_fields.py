"""Values that change nothing are taken whatever client sends them.

Any other value of those fields is refused by its name.
"""

import json
from typing import Any

import pytest

from hmoe.serve.http.http_error import HTTPError
from hmoe.serve.http.neutral_fields import CHAT, COMPLETION, SAMPLING
from hmoe.serve.http.schema import ChatRequest, CompletionRequest, parse_request

BODIES: dict[type, dict[str, Any]] = {
    CompletionRequest: {"prompt": "x"},
    ChatRequest: {"messages": [{"role": "user", "content": "x"}]},
}
TABLES = {CompletionRequest: SAMPLING | COMPLETION, ChatRequest: SAMPLING | CHAT}
USED = {"top_k", "logit_bias", "logprobs", "top_logprobs"}  # fields of ours that have a further neutral value


def read(kind: Any, **fields: Any) -> Any:
    return parse_request(kind, json.dumps({**BODIES[kind], **fields}).encode())


@pytest.mark.parametrize("kind", BODIES)
def test_a_neutral_value_gives_the_request_without_it(kind: Any) -> None:
    plain = read(kind)
    for name, values in TABLES[kind].items():
        for value in (*values, None):
            assert read(kind, **{name: value}) == plain, (name, value)
    assert read(kind, min_p=0.0, repetition_penalty=1.0, some_future_field=None) == plain


@pytest.mark.parametrize("kind", BODIES)
def test_any_other_value_is_refused_by_its_name(kind: Any) -> None:
    for name in TABLES[kind].keys() - USED:
        with pytest.raises(HTTPError, match=f"^{name}: is not supported") as refused:
            read(kind, **{name: "something else"})
        assert refused.value.param == name
    for name, value in (
        ("min_p", False),
        ("ignore_eos", 0),
        ("repetition_penalty", True),
        ("stop_token_ids", [0]),
    ):
        with pytest.raises(HTTPError, match=f"^{name}: is not supported"):
            read(kind, **{name: value})


@pytest.mark.parametrize(
    ("field", "nearest"),
    [("max_tokenz", "max_tokens"), ("temprature", "temperature"), ("n_predict", "max_tokens"),
     ("stop_sequences", "stop"), ("reasoning_effort", None), ("presence", None), ("options", None)],
)  # fmt: skip
def test_the_nearest_field_is_near_or_not_named(field: str, nearest: str | None) -> None:
    with pytest.raises(HTTPError) as refused:
        read(CompletionRequest, **{field: 3})
    assert refused.value.message.partition("nearest field: ")[2] == (nearest or "")


def test_reasoning_effort_is_told_what_is_taken() -> None:
    with pytest.raises(HTTPError, match="which takes 'none' only"):
        read(ChatRequest, reasoning_effort="low")


def test_histories_with_tools_are_refused_by_name_and_silence_is_taken() -> None:
    user, silent = {"role": "user", "content": "x"}, {"role": "assistant", "content": None}
    for turn in ({**silent, "tool_calls": [{"id": "c"}]}, {**silent, "function_call": {"name": "f"}},
                 {"role": "tool", "tool_call_id": "c", "content": "4"},
                 {"role": "function", "content": "4"}):  # fmt: skip
        with pytest.raises(HTTPError, match=r"tool|function"):
            read(ChatRequest, messages=[user, turn])
    request = read(
        ChatRequest, messages=[user, {**silent, "tool_calls": [], "refusal": None, "audio": None}, user]
    )
    assert [message.content for message in request.messages] == ["x", None, "x"]
    with pytest.raises(HTTPError, match=r"messages\.0\.content: Field required"):
        read(ChatRequest, messages=[{"role": "user", "content": None}])
    with pytest.raises(HTTPError, match="'image_url' is not supported"):
        read(ChatRequest, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    assert read(ChatRequest, messages=[{"role": "user", "content": [part]}]).messages[0].content == [
        {"type": "text", "text": "a"}
    ]


def test_as_many_stops_as_lm_evals_tasks_send() -> None:
    assert len(read(CompletionRequest, stop=[f"\n{i}" for i in range(64)]).stop) == 64


def test_stream_options_that_ask_for_nothing_need_no_stream() -> None:
    for options in ({}, {"include_usage": False}, {"include_obfuscation": False}):
        read(ChatRequest, stream_options=options)


def test_an_assistant_that_called_tools_is_refused_for_the_call() -> None:
    turn = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}
    with pytest.raises(HTTPError, match=r"^messages\.0\.tool_calls: is not supported"):
        read(ChatRequest, messages=[turn])
