"""From a checked request to the engine, and back as an answer; of HTTP only the statuses are known here."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError
from hmoe.model.generate import Sampling
from hmoe.model.transformer import Transformer
from hmoe.parallel.offload import ExpertOffload
from hmoe.serve.chat_prompt import ChatLayout, ChatTurn
from hmoe.serve.engine.engine import BusyError, ClosedError, Engine
from hmoe.serve.engine.sequence import SequenceJob
from hmoe.serve.engine.types import EngineLimits, SequenceEvent, SequenceFailure, SequenceTask, UsageCounts
from hmoe.serve.http.http_error import HTTPError
from hmoe.serve.http.responses import (
    ChatFormatter,
    CompletionFormatter,
    TokenNames,
    average_activation,
    count_usage,
)
from hmoe.serve.http.schema import ChatRequest, CompletionRequest, GenerationRequest

_DEFAULT_TOKENS = 16  # of a completion, as OpenAI has it
_RETRY_SECONDS = 1


@dataclass(frozen=True)
class ServedModel:
    """Names the model that is served, and how texts for it are written.

    Attributes:
        model: in evaluation mode; the engine switches its router checks off.
        name: by which requests name it.
        chat_template: Jinja, or None for plain lines.
        begin: tokens before every text that is not given as tokens, such as LLaMA's <s>.
        folder: where the model was read, for the special tokens that its template names.
        offload: of experts that lie outside of the device's memory; None: none do.
    """

    model: Transformer
    tokenizer: Tokenizer
    name: str
    chat_template: str | None = None
    begin: Sequence[int] = ()
    folder: Path | None = None
    offload: ExpertOffload | None = None


class Exchange:
    """Brings the events of a job from the engine's thread to the event loop."""

    def __init__(self, formatter: CompletionFormatter, prompt_tokens: int) -> None:
        self.formatter, self._prompt_tokens = formatter, prompt_tokens
        self._events: asyncio.Queue[SequenceEvent | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.job: SequenceJob | None = None
        self.used = UsageCounts()

    def deliver(self, event: SequenceEvent) -> None:
        """Take an event from the engine's thread to the event loop's."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def give_up(self) -> None:
        """Stop the engine's work and whoever waits for its events, because the client is gone."""
        if self.job is not None:
            self.job.cancel()
        self._events.put_nowait(None)

    async def batches(self) -> AsyncIterator[list[SequenceEvent]]:
        """Yield whatever events have arrived, until every sequence has ended.

        Raises:
            Refusal: if a sequence failed, the others are cancelled; or after `give_up`.
        """
        assert self.job is not None
        num_left = len(self.job.sequences)
        try:
            while num_left:
                # All that is there becomes one batch: a client that reads slowly gets larger pieces, not
                # later ones.
                events = [await self._events.get()]
                while not self._events.empty():
                    events.append(self._events.get_nowait())
                if None in events:
                    raise HTTPError(499, "the client went away")
                batch = [event for event in events if event is not None]
                for event in batch:
                    self._take(event)
                num_left -= sum(event.finish is not None for event in batch)
                yield batch
        finally:
            self.job.cancel()

    def _take(self, event: SequenceEvent) -> None:
        if event.failure is not None:
            raise make_http_error(event.failure)
        if event.used is not None:
            self.used.add(event.used)

    def count_tokens(self) -> tuple[int, int]:
        """Return the tokens of the prompts, and those that were drawn for answers that have ended."""
        return self._prompt_tokens, self.used.new_tokens

    def numbers(self, served: ServedModel) -> dict[str, Any]:
        """Return the usage, and next to it what was activated."""
        return {
            "usage": count_usage(self._prompt_tokens, self.used.new_tokens),
            "hmoe": average_activation(served.model.config, self.used),
        }


def make_http_error(failure: SequenceFailure) -> HTTPError:
    """Return the HTTP error of a sequence that failed."""
    return HTTPError(failure.status, failure.message, code=failure.code)


class Service:
    """Turns requests into jobs of the engine of a served model.

    Attributes:
        max_tokens: new tokens that one sequence may ask for.
        seconds: that a request may take.
        created: time of start, in seconds since 1970.
    """

    def __init__(self, served: ServedModel, limits: EngineLimits, max_tokens: int, seconds: float) -> None:
        self.served, self.max_tokens, self.seconds = served, max_tokens, seconds
        self.conversation = ChatLayout(served.tokenizer, served.chat_template, served.begin, served.folder)
        self.names = TokenNames(served.tokenizer, served.tokenizer.specials)
        self.engine = Engine(served.model, served.tokenizer, limits)
        self.created = int(time.time())

    def describe(self) -> dict[str, Any]:
        """Describe the model as OpenAI's list of models does."""
        return {
            "id": self.served.name,
            "object": "model",
            "created": self.created,
            "owned_by": "hmoe",
            "max_model_len": self.engine.capacity,
        }

    def health(self) -> dict[str, Any]:
        """Return the state, and what is open.

        It is `ok`, `degraded` for a minute after the model failed on a request, or `closing` when no requests
        are taken.
        """
        since = time.monotonic() - self.engine.failed_at
        status = "closing" if not self.engine.alive else "degraded" if since < 60 else "ok"
        return {
            "status": status,
            "model": self.served.name,
            "failures": self.engine.failures,
            **self.engine.load(),
        }

    def check_model(self, request: GenerationRequest) -> None:
        """Raise Refusal 404 if the request names another model than the one that is served."""
        if request.model not in (None, self.served.name):
            raise HTTPError(
                404,
                f"model: {request.model[:100]!r} is not served here; {self.served.name!r} is",
                "model",
                "model_not_found",
            )

    async def complete(self, request: CompletionRequest) -> Exchange:
        """Queue a text completion; its texts are encoded here.

        Raises:
            Refusal: 400, 404, 429 or 503; nothing was queued.
        """
        self.check_model(request)
        texts = [prompt for prompt in request.prompt if isinstance(prompt, str)]
        # In a thread: a long text takes a while, and other clients need not wait for it.
        encoded = iter(await asyncio.to_thread(self.served.tokenizer.encode, texts) if texts else [])
        # A text without tokens continues nothing: it begins a new document.
        separator = [self.served.tokenizer.separator]
        begin = self.served.begin
        prompts = [
            ([*begin, *next(encoded)] or separator) if isinstance(prompt, str) else prompt
            for prompt in request.prompt
        ]
        max_tokens = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        # Checked before an echo decodes the ids: a tokenizer may raise anything for ids that it does not have.
        tasks = self._make_tasks(request, prompts, max_tokens, request.logprobs)
        self._check_tasks(tasks, prompt_field="prompt")
        # The engine need not know of an echo without log-probabilities: the text is here.
        if request.echo and request.logprobs is not None:
            tasks = [replace(task, echo=True) for task in tasks]
        echoes = []
        if request.echo:
            for prompt, ids in zip(request.prompt, prompts, strict=True):
                text = prompt if isinstance(prompt, str) else self.served.tokenizer.decode(ids)
                echoes += [(text, ids)] * (request.n or 1)
        formatter = CompletionFormatter(self.served.name, self.names, request.logprobs is not None, echoes)
        return self._submit(tasks, Exchange(formatter, sum(map(len, prompts))))

    async def chat(self, request: ChatRequest) -> Exchange:
        """Queue a chat completion; without max_tokens it may go on to the end of the context.

        Raises:
            Refusal: 400, 404, 429 or 503; nothing was queued.
        """
        self.check_model(request)
        turns = [ChatTurn(message.role, message.content, message.name) for message in request.messages]
        try:
            ids = await asyncio.to_thread(self.conversation.encode, turns)
        except ConfigError as error:
            raise HTTPError(400, str(error), "messages", "invalid_value") from None
        max_tokens = (
            request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        )
        if max_tokens is None:
            max_tokens = max(1, min(self.max_tokens, self.engine.capacity - len(ids)))
        tasks = self._make_tasks(
            request, [ids], max_tokens, (request.top_logprobs or 0) if request.logprobs else None
        )
        formatter = ChatFormatter(self.served.name, self.names, bool(request.logprobs), [])
        tasks = [replace(task, stops=(*task.stops, *self.conversation.stops)) for task in tasks]
        self._check_tasks(tasks, prompt_field="messages")
        return self._submit(tasks, Exchange(formatter, len(ids)))

    def _make_tasks(
        self, request: GenerationRequest, prompts: Sequence[list[int]], max_tokens: int, logprobs: int | None
    ) -> list[SequenceTask]:
        if max_tokens > self.max_tokens:
            raise HTTPError(400, f"max_tokens: at most {self.max_tokens} here", "max_tokens", "invalid_value")
        temperature = 1.0 if request.temperature is None else request.temperature
        # Seeds may be negative in a request, but not in a generator.
        seed = secrets.randbits(62) if request.seed is None else request.seed % 2**63
        task = SequenceTask(
            prompt=(),
            max_tokens=max_tokens,
            sampling=Sampling(temperature, request.top_k or 0, request.top_p or 1.0),
            bias=request.logit_bias,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            stops=request.stop,
            logprobs=logprobs,
            top_p_experts=request.top_p_experts,
            stream=bool(request.stream),
        )
        # The continuations of one prompt must differ; those of different prompts may have the same seeds, so
        # that a prompt is answered alike whether it comes alone or with others.
        pairs = [(ids, offset) for ids in prompts for offset in range(request.n or 1)]
        return [replace(task, prompt=tuple(ids), seed=(seed + offset) % 2**63) for ids, offset in pairs]

    def _check_tasks(self, tasks: list[SequenceTask], prompt_field: str) -> None:
        """Raise Refusal 400 for what the engine cannot do; `prompt_field` is the field of the prompt."""
        try:
            for task in tasks:
                self.engine.check(task)
        except ConfigError as error:
            # The engine's errors begin with the name of a field, as the engine calls it.
            field, _, reason = str(error).partition(":")
            field = prompt_field if field == "prompt" else field
            code = "context_length_exceeded" if " max_tokens " in reason else "invalid_value"
            raise HTTPError(400, f"{field}:{reason}", field, code) from None

    def _submit(self, tasks: list[SequenceTask], exchange: Exchange) -> Exchange:
        try:
            exchange.job = self.engine.submit(tasks, exchange.deliver, self.seconds)
        except BusyError as error:
            raise HTTPError(
                429, str(error), code="busy", headers={"Retry-After": str(_RETRY_SECONDS)}
            ) from None
        except ClosedError as error:
            raise HTTPError(503, str(error), code="shutting_down", headers={"Retry-After": "10"}) from None
        return exchange
