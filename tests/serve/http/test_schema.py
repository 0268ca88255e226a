"""Requests that cannot be answered are refused by the name of the field."""

import pytest

from tests.serve.helpers import CONTEXT, Live

REFUSED = [
    ({"best_of": 3}, "best_of", "must equal n"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"max_tokenz": 3}, "max_tokenz", "nearest field: max_tokens"),
    ({"top_p_experts": 0.5}, "top_p_experts", "not top-p"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": "1"}, "temperature", "valid number"),
    ({"max_tokens": True}, "max_tokens", "valid integer"),
    ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
    ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    ({"max_tokens": CONTEXT + 1}, "max_tokens", f"at most {CONTEXT}"),
    ({"max_tokens": CONTEXT}, "prompt", f"together at most {CONTEXT}"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"prompt": ["x"] * 65, "n": 2}, "n", "more than 128"),
    ({"prompt": ["x"] * 129}, "prompt", "at most 128"),
    ({"prompt": [1, "x"]}, "prompt", "none empty"),
    ({"prompt": [[1], []]}, "prompt", "none empty"),
    ({"prompt": []}, "prompt", "not empty"),
    ({"prompt": {}}, "prompt", "must be a text"),
    ({"prompt": [300]}, "prompt", "from 0 to 256"),
    ({"prompt": [-1]}, "prompt", "from 0 to 256"),
    ({"prompt": [2**70]}, "prompt", "from 0 to 256"),
    ({"prompt": [-1], "echo": True}, "prompt", "from 0 to 256"),
    ({"prompt": [2**70], "echo": True, "logprobs": 1}, "prompt", "from 0 to 256"),
    ({"prompt": "a" * CONTEXT}, "prompt", f"{CONTEXT} tokens"),
    ({"stop": ["a"] * 65}, "stop", "up to 64"),
    ({"stop": ["a" * 1024] * 5}, "stop", "4096 characters in all"),
    ({"stop": ""}, "stop", "1 to 1024 characters"),
    ({"logit_bias": {"300": 1}}, "logit_bias", "from 0 to 256"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "keys must be token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
    ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"messages": []}, "messages", "not supported"),
]


@pytest.mark.parametrize(("change", "param", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_name(
    live: Live, change: dict[str, object], param: str, reason: str
) -> None:
    answer = live.post("/v1/completions", {"prompt": "x", **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages",
            "'system', 'developer', 'user' or 'assistant'",
        ),
        ({"messages": [{"role": "user"}]}, "messages", "messages.0.content: Field required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages",
            "text only",
        ),
        ({"messages": [{**USER, "tool_calls": [1]}]}, "messages", "messages.0.tool_calls: is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "only with logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differs"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not supported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_chats_are_refused_by_name(live: Live, change: dict[str, object], param: str, reason: str) -> None:
    answer = live.post("/v1/chat/completions", {"messages": [USER], **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert reason in answer.json()["error"]["message"]


def test_neutral_values_of_fields_are_accepted(live: Live) -> None:
    body = {"messages": [USER], "max_tokens": 1, "store": False, "tools": [], "tool_choice": "none", "user": "me",
            "response_format": {"type": "text"}, "metadata": {"a": "b"}, "temperature": None, "stop": None, "n": None,
            "logit_bias": None, "stream": False, "stream_options": None}  # fmt: skip
    assert live.post("/v1/chat/completions", body).status_code == 200
