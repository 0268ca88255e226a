"""Every route of the server as OpenAI's client and plain HTTP use it."""

import json
import math
from collections.abc import Iterator

import openai
import pytest
import torch

from hmoe.config.counts import count_activated_parameters
from hmoe.model.generate import Sampling, generate_tokens
from hmoe.model.likelihood import Candidate, score_candidates
from tests.serve.helpers import CONTEXT, TOKENIZER, TOP_P, Live, model

PROMPT = "It was a dark"


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_completion_is_what_generate_gives(live: Live, client: openai.OpenAI) -> None:
    ids = TOKENIZER.encode([PROMPT])[0]
    with torch.no_grad():
        expected = list(generate_tokens(live.model, ids, 20, Sampling(0), 0, TOKENIZER))
    answer = client.completions.create(model="small", prompt=PROMPT, max_tokens=20, temperature=0)
    assert answer.choices[0].text == TOKENIZER.decode(expected)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == 20
    by_ids = client.completions.create(model="small", prompt=ids, max_tokens=20, temperature=0)
    assert by_ids.choices[0].text == answer.choices[0].text


def test_the_answer_says_what_was_activated(live: Live, client: openai.OpenAI) -> None:
    told = client.completions.create(model="small", prompt=PROMPT, max_tokens=8).model_extra["hmoe"]  # type: ignore[index]
    assert told["experts_per_token"] == 2
    assert 40 <= told["activated_hidden_units"] <= 80
    assert told["activated_parameters"] == count_activated_parameters(
        live.model.config, told["activated_hidden_units"]
    )


def test_several_prompts_and_several_answers(client: openai.OpenAI) -> None:
    prompts = ["one", "two", "three"]
    answer = client.completions.create(model="small", prompt=prompts, n=2, max_tokens=9, seed=5)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(model="small", prompt=prompt, n=2, max_tokens=9, seed=5, best_of=2)
        texts = [choice.text for choice in alone.choices]
        assert [answer.choices[2 * i].text, answer.choices[2 * i + 1].text] == texts
        assert texts[0] != texts[1]


def test_streams_add_up_to_the_whole(client: openai.OpenAI) -> None:
    common = {
        "model": "small",
        "prompt": ["alpha", "beta"],
        "max_tokens": 30,
        "seed": 3,
        "n": 2,
        "logprobs": 2,
    }
    whole = client.completions.create(**common)  # type: ignore[call-overload]
    stream = list(client.completions.create(**common, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    assert stream[-1].choices == []
    assert stream[-1].usage == whole.usage
    assert stream[-1].model_extra["hmoe"] == whole.model_extra["hmoe"]
    assert len(stream) > 8
    for choice in whole.choices:
        pieces = [c.choices[0] for c in stream[:-1] if c.choices[0].index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [
            choice.finish_reason
        ]
        for name in ("tokens", "text_offset"):
            assert [x for piece in pieces for x in getattr(piece.logprobs, name)] == getattr(
                choice.logprobs, name
            )


def test_echo_repeats_the_prompt_and_tells_its_logprobs(live: Live, client: openai.OpenAI) -> None:
    ids = TOKENIZER.encode([PROMPT])[0]
    for prompt in (PROMPT, ids):
        answer = client.completions.create(
            model="small", prompt=prompt, echo=True, logprobs=1, max_tokens=2, temperature=0
        )
        choice = answer.choices[0]
        told = choice.logprobs
        assert told is not None
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert choice.text.startswith(PROMPT)
        assert told.tokens is not None
        assert told.tokens[: len(ids)] == list(PROMPT)
        assert told.text_offset is not None
        assert told.text_offset[: len(ids) + 1] == list(range(len(ids) + 1))
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        expected = score_candidates(live.model, [[Candidate(ids, 6)]]).groups[0][0]
        assert -sum(told.token_logprobs[-8:-2]) == pytest.approx(expected.nll, abs=1e-4)
        assert all(
            max(top.values()) == lp
            for top, lp in zip(told.top_logprobs[-2:], told.token_logprobs[-2:], strict=True)
        )
    streamed = client.completions.create(
        model="small", prompt=PROMPT, echo=True, max_tokens=3, stream=True, temperature=0
    )
    assert "".join(chunk.choices[0].text for chunk in streamed).startswith(PROMPT)
    only = client.completions.create(model="small", prompt=PROMPT, echo=True, max_tokens=0)
    assert only.choices[0].text == PROMPT


def test_logprobs_are_probabilities_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="small", prompt=PROMPT, max_tokens=5, logprobs=4, temperature=0)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.top_logprobs is not None
    assert told.token_logprobs is not None
    for top, logprob in zip(told.top_logprobs, told.token_logprobs, strict=True):
        assert len(top) == 4
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert max(top.values()) == logprob
        assert sum(map(math.exp, top.values())) <= 1


def test_chat(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = client.chat.completions.create(
        model="small", messages=messages, max_completion_tokens=12, temperature=0, logprobs=True, top_logprobs=3  # type: ignore[arg-type]
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 12
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob
        assert bytes(token.bytes or []).decode(errors="replace") == token.token or token.token.startswith(
            "bytes:"
        )
    laid_out = "System: Be kind.\n\nUser: Hi\n\nAssistant:"
    plain = client.completions.create(model="small", prompt=laid_out, max_tokens=12, temperature=0)
    assert choice.message.content == plain.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(laid_out)
    again = [*messages, choice.message.model_dump(), {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(model="small", messages=again, max_tokens=2).choices  # type: ignore[arg-type]


def test_chat_streams(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    common = {"model": "small", "messages": messages, "seed": 1, "max_tokens": 25, "n": 2}
    whole = client.chat.completions.create(**common)  # type: ignore[call-overload]
    stream = list(
        client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True})
    )  # type: ignore[call-overload]
    assert stream[-1].usage == whole.usage
    for choice in whole.choices:
        pieces = [c.choices[0] for c in stream[:-1] if c.choices[0].index == choice.index]
        assert pieces[0].delta.role == "assistant"
        assert all(piece.delta.role is None for piece in pieces[1:])
        assert "".join(piece.delta.content or "" for piece in pieces) == choice.message.content
        assert pieces[-1].finish_reason == choice.finish_reason


def test_chat_without_max_tokens_ends_with_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "Hi"}], logit_bias={"256": -100}, temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == CONTEXT


def test_a_chat_that_is_too_long_blames_the_messages(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages: ") as refused:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x" * CONTEXT}])
    assert refused.value.param == "messages"
    assert refused.value.code == "context_length_exceeded"


def test_stop_seed_and_biases_reach_the_engine(client: openai.OpenAI) -> None:
    letters = {str(i): 100 for i in b"ab"}
    common = {"model": "small", "prompt": "x", "max_tokens": 40, "logit_bias": letters, "seed": 2}
    free = client.completions.create(**common).choices[0].text  # type: ignore[call-overload]
    assert set(free) == {"a", "b"}
    assert client.completions.create(**common).choices[0].text == free  # type: ignore[call-overload]
    assert client.completions.create(**{**common, "seed": -9}).choices[0].text != free  # type: ignore[call-overload]
    stopped = client.completions.create(**common, stop=["never", free[5:12]]).choices[0]  # type: ignore[call-overload]
    assert stopped.text == free[: free.index(free[5:12])]
    assert stopped.finish_reason == "stop"
    for knob in ({"top_k": 1}, {"top_p": 1e-9}):
        narrow = client.completions.create(**common, extra_body=knob).choices[0].text  # type: ignore[call-overload]
        assert narrow == client.completions.create(**{**common, "temperature": 0}).choices[0].text  # type: ignore[call-overload]


def test_top_p_experts_of_a_top_p_model() -> None:
    with Live(model(TOP_P)) as live:
        told = []
        for p in (0.3, None, 0.99):
            body = {"prompt": PROMPT, "max_tokens": 8, "seed": 1, "temperature": 0} | (
                {"top_p_experts": p} if p else {}
            )
            told.append(live.post("/v1/completions", body).json()["hmoe"]["experts_per_token"])
        assert told[0] < told[1] < told[2]
        assert live.post("/v1/completions", {"prompt": "x", "top_p_experts": 1.5}).status_code == 400


def test_models_health_metrics(live: Live, client: openai.OpenAI) -> None:
    assert [listed.id for listed in client.models.list()] == ["small"]
    assert client.models.retrieve("small").model_extra["max_model_len"] == CONTEXT  # type: ignore[index]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")
    assert live.get("/health").json()["status"] == "ok"
    before = live.metric("hmoe_generated_tokens_total")
    units = live.metric("hmoe_activated_units_total")
    live.post("/v1/completions", {"prompt": "x", "max_tokens": 7, "logit_bias": {"256": -100}})
    assert live.metric("hmoe_generated_tokens_total") == before + 7
    assert live.metric("hmoe_activated_units_total") >= units + 7 * 2 * 40
    page = live.get("/metrics").text
    for line in page.splitlines():
        assert line.startswith("#") or len(line.split(" ")) == 2, line
    assert 'hmoe_requests_total{route="/v1/completions",status="200"}' in page
    assert 'hmoe_request_seconds_bucket{le="+Inf"}' in page


def test_another_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="large", prompt="x")
    assert caught.value.code == "model_not_found"


def test_an_empty_prompt_begins_a_document(live: Live) -> None:
    empty = live.post(
        "/v1/completions", {"prompt": "", "max_tokens": 9, "temperature": 0, "echo": True}
    ).json()
    by_id = live.post("/v1/completions", {"prompt": [256], "max_tokens": 9, "temperature": 0}).json()
    assert empty["choices"][0]["text"] == by_id["choices"][0]["text"]


def test_every_event_of_a_stream_is_json(live: Live) -> None:
    answer = live.post("/v1/completions", {"prompt": "x", "max_tokens": 5, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert json.loads(event.removeprefix("data: "))["object"] == "text_completion"


def test_texts_begin_with_what_the_model_knows_before_them_and_token_ids_are_taken_as_they_are(
    live: Live,
) -> None:
    ids = TOKENIZER.encode([PROMPT])[0]
    common = {"max_tokens": 6, "temperature": 0, "logprobs": 1, "echo": True}
    with Live(live.model, begin=(7,)) as beginning:
        text = beginning.post("/v1/completions", {"prompt": PROMPT, **common}).json()
        same = beginning.post("/v1/completions", {"prompt": [7, *ids], **common}).json()
        chat = beginning.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}
        ).json()
    assert (
        text["choices"][0]["logprobs"]["token_logprobs"] == same["choices"][0]["logprobs"]["token_logprobs"]
    )
    assert text["usage"]["prompt_tokens"] == len(ids) + 1
    assert text["choices"][0]["text"].startswith(PROMPT)
    plain = live.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    ).json()
    assert chat["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + 1
