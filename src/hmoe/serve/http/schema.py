"""Requests as OpenAI's clients send them: a field that would not have its effect is refused by name."""

import json
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from hmoe.serve.http import neutral_fields
from hmoe.serve.http.http_error import HTTPError

MAX_SEQUENCES = 128  # prompts x n of one request
_MAX_STOPS, _MAX_STOP_CHARACTERS, _MAX_BIASES = 64, 1024, 1024
_MAX_ALL_STOPS_CHARACTERS = 4096  # what a step of the engine compares with

Prompt = str | list[int]


def _prompts(value: Any) -> list[Prompt]:
    """Return a list of prompts, from one text, some texts, one list of ids, or some lists of ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(
            "must be a text, a list of texts, a list of token ids, or a list of such lists, not empty"
        )
    if _are(value, int):
        return [value]
    if len(value) > MAX_SEQUENCES:
        raise ValueError(f"{len(value)} prompts, at most {MAX_SEQUENCES} in one request")
    if _are(value, str) or all(isinstance(item, list) and item and _are(item, int) for item in value):
        return value
    raise ValueError("must be texts only, or lists of token ids only, none empty")


def _are(values: list[Any], kind: type) -> bool:
    # Not isinstance: a bool is an int to Python, and no token id.
    return all(type(value) is kind for value in values)


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value if value is not None else ()
    if not isinstance(stops, tuple | list) or len(stops) > _MAX_STOPS or not _are(list(stops), str):
        raise ValueError(f"must be a text or a list of up to {_MAX_STOPS} texts")
    if not all(0 < len(stop) <= _MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"each must have 1 to {_MAX_STOP_CHARACTERS} characters")
    if sum(map(len, stops)) > _MAX_ALL_STOPS_CHARACTERS:
        raise ValueError(f"must have at most {_MAX_ALL_STOPS_CHARACTERS} characters in all")
    return tuple(stops)


def _biases(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MAX_BIASES:
        raise ValueError(f"must be an object of up to {_MAX_BIASES} token ids and numbers")
    biases = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 12):
            raise ValueError("keys must be token ids")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError("values must be numbers from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def _content(value: Any) -> Any:
    """Return a content that is a text or a list of text parts; other parts, such as images, are refused."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of text parts")
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text":
            raise ValueError(
                f'a part of type {str(kind)[:40]!r} is not supported; must be "text": this model reads text only'
            )
        kept = neutral_fields.drop_neutral(part, neutral_fields.PART)
        unknown = sorted(kept.keys() - {"type", "text"})
        if unknown:
            raise ValueError(f"{unknown[0][:64]}: is not supported in a part; leave it out")
        if not isinstance(kept.get("text"), str):
            raise ValueError("the text of a part must be a text")
        parts.append(kept)
    return parts


# An assistant's message with any of these need not have a content.
_SILENT = {"content", "tool_calls", "function_call"}


def _role(value: Any) -> Any:
    if value in ("tool", "function"):
        raise ValueError(
            f"{value!r} is not supported by this server, which calls no tools; "
            "must be 'system', 'developer', 'user' or 'assistant'"
        )
    return value


Label = Annotated[str, Field(max_length=1024)]
Strict = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(BaseModel):
    """Says what a stream tells besides its text."""

    model_config = Strict
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: Literal[False] | None = None


class GenerationRequest(BaseModel):
    """Checks the fields that both kinds of requests have.

    Attributes:
        neutral: values of further fields that change nothing.
    """

    model_config = Strict
    neutral: ClassVar = neutral_fields.SAMPLING
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_biases)] = Field(default_factory=dict)
    top_p_experts: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Label | None = None
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, content: Any) -> Any:
        return neutral_fields.drop_neutral(content, cls.neutral) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options: only with stream = true")
        return self

    @property
    def include_usage(self) -> bool:
        """Tell whether the last chunk of a stream is to tell the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """Checks the body of a request for a text completion."""

    neutral: ClassVar = neutral_fields.SAMPLING | neutral_fields.COMPLETION
    prompt: Annotated[list[Prompt], FailFast(), BeforeValidator(_prompts)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "CompletionRequest":
        n = self.n or 1
        if self.best_of not in (None, n):
            raise ValueError(f"best_of: must equal n = {n}; this server returns what it draws")
        if len(self.prompt) * n > MAX_SEQUENCES:
            raise ValueError(
                f"n: {len(self.prompt)} prompts x n = {n} are more than {MAX_SEQUENCES} sequences"
            )
        return self


class ChatMessage(BaseModel):
    """Checks one message of a conversation."""

    model_config = Strict
    neutral: ClassVar = neutral_fields.MESSAGE
    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_role)]
    content: Annotated[str | list[dict[str, str]] | None, BeforeValidator(_content)]
    name: Annotated[str, Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, content: Any) -> Any:
        """Leave out neutral fields; an assistant needs no content if it is silent or called tools."""
        if not isinstance(content, dict):
            return content
        silent = {"content": None} if content.get("role") == "assistant" and content.keys() & _SILENT else {}
        return silent | neutral_fields.drop_neutral(content, cls.neutral)


class ChatRequest(GenerationRequest):
    """Checks the body of a request for a chat completion."""

    neutral: ClassVar = neutral_fields.SAMPLING | neutral_fields.CHAT
    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs = true")
        if (
            None not in (self.max_tokens, self.max_completion_tokens)
            and self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        return self


Kind = TypeVar("Kind", bound=GenerationRequest)


def parse_request(kind: type[Kind], body: bytes) -> Kind:
    """Return the request that the bytes of a body hold.

    Raises:
        Refusal: 400, naming the field that is wrong.
    """
    content = parse_strict_json(body)
    if not isinstance(content, dict):
        raise HTTPError(400, "the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def parse_strict_json(body: bytes) -> Any:
    """Decode JSON as the standard has it: UTF-8, no NaN, no infinity, no duplicate keys, no half characters.

    Raises:
        Refusal: 400.
    """
    try:
        text = body.decode()
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        # Finds what json.loads lets through: 1e999, which becomes infinity, and half of a surrogate pair.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeDecodeError:
        raise HTTPError(400, "the body is not UTF-8", code="invalid_json") from None
    except UnicodeEncodeError:
        raise HTTPError(400, "a text holds half of a surrogate pair", code="invalid_json") from None
    except RecursionError:
        raise HTTPError(400, "the JSON is nested too deep", code="invalid_json") from None
    except ValueError as error:
        raise HTTPError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object has the same key twice")
    return content


def _refusal(kind: type[BaseModel], error: ValidationError) -> HTTPError:
    """Return the first of the errors, as `field: what is wrong`."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = [str(step)[:64] for step in first["loc"]]  # such as messages, 0, content
    if first["type"] == "extra_forbidden":
        levels: dict[str, type[BaseModel]] = {"messages": ChatMessage, "stream_options": StreamOptions}
        level = levels.get(path[0], kind) if path[1:] else kind
        message = neutral_fields.explain_unknown(
            path[-1], getattr(level, "neutral", {}), list(level.model_fields)
        )
        return HTTPError(400, f"{'.'.join(path)}: {message}", path[0], "unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if path:
        return HTTPError(400, f"{'.'.join(path)}: {message[:300]}", path[0], "invalid_value")
    # A check of several fields has no path, so its message begins with the field.
    return HTTPError(400, message[:300], message.split(":")[0], "invalid_value")
