"""What is answered, in OpenAI's format: completions and chat completions, whole and in chunks."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from hmoe.config.counts import count_activated_parameters
from hmoe.model.trace import average_activated
from hmoe.serve.engine.batch import EngineTokenizer
from hmoe.serve.engine.types import SequenceEvent, TokenLogprob, UsageCounts
from hmoe.specs.model import ModelSpec

_LOWEST_LOGPROB = -9999.0  # JSON has no infinity


def average_activation(config: ModelSpec, used: UsageCounts) -> dict[str, float]:
    """Return what the tokens of a request activated, as means over tokens and MoE layers."""
    num_layers = len(config.moe_layers)
    units = average_activated(used.units, used.rows, num_layers)
    return {
        "activated_hidden_units": units,
        "activated_parameters": count_activated_parameters(config, units),
        "experts_per_token": average_activated(used.experts, used.rows, num_layers),
    }


def count_usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Return token counts, in which a prompt counts once however many continuations it has."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


class TokenNames:
    """Writes tokens as clients read them."""

    def __init__(self, tokenizer: EngineTokenizer, specials: dict[str, int]) -> None:
        self._tokenizer = tokenizer
        self._specials = {token: text for text, token in specials.items()}

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 of a token; for a control token that of its name."""
        if token in self._specials:
            return self._specials[token].encode()
        return self._tokenizer.token_bytes(token) if token < self._tokenizer.vocab_size else b""

    def text_of(self, token: int) -> str:
        r"""Return its text; `bytes:\xe2\x80` for a part of a character, `<id 7>` for a token without text."""
        content = self.bytes_of(token)
        try:
            return content.decode() or f"<id {token}>"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Return where each token's text begins in the text of all, in characters."""
        detokenizer, offsets = self._tokenizer.detokenizer(), []
        for token in tokens:
            offsets.append(len(detokenizer.readable()))
            detokenizer.add(token)
        return offsets


def format_completion_logprobs(
    names: TokenNames, entries: Sequence[TokenLogprob], offsets: Sequence[int]
) -> dict[str, Any]:
    """Return the four lists of a text completion; of two tokens with one text the more probable is told."""
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(names.text_of(token), max(logprob, _LOWEST_LOGPROB))
        tops.append(top)
    return {
        "tokens": [names.text_of(entry.token) for entry in entries],
        "token_logprobs": [None if e.logprob is None else max(e.logprob, _LOWEST_LOGPROB) for e in entries],
        "top_logprobs": tops,
        "text_offset": list(offsets),
    }


def format_chat_logprobs(names: TokenNames, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the log-probabilities of a chat completion: one object per token."""

    def describe(token: int, logprob: float) -> dict[str, Any]:
        content = list(names.bytes_of(token))
        return {"token": names.text_of(token), "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": content}

    content = [
        describe(entry.token, entry.logprob or 0.0)
        | {"top_logprobs": [describe(*pair) for pair in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


class CompletionFormatter:
    """Writes one request's answer as a text completion; the class below writes a chat completion.

    Attributes:
        logprobs: whether they were asked for.
        prompts: of every choice, the prompt's text and token ids, if they are to be repeated.
    """

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self, model: str, names: TokenNames, logprobs: bool, prompts: Sequence[tuple[str, Sequence[int]]]
    ) -> None:
        self._head = {"id": self.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}
        self.names, self.logprobs, self.prompts = names, logprobs, prompts
        self._begun: set[int] = set()

    def whole(self, events: Sequence[SequenceEvent]) -> dict[str, Any]:
        """Return the answer as a whole, from one event per choice."""
        choices = [self.choice(event) for event in sorted(events, key=lambda event: event.index)]
        return self._head | {"object": self.kind, "choices": choices}

    def chunk(self, events: Sequence[SequenceEvent]) -> list[dict[str, Any]]:
        """Return the chunks of a stream for some events: each holds a piece of one choice."""
        head = self._head | {"object": self.chunk_kind}
        return [head | {"choices": [choice]} for event in events for choice in self.deltas(event)]

    def end(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return the last chunk, which has no text and tells the usage."""
        return self._head | {"object": self.chunk_kind, "choices": []} | numbers

    def choice(self, event: SequenceEvent) -> dict[str, Any]:
        """Return a choice, or the next piece of it."""
        text, entries, offsets = event.text, list(event.entries), [entry.offset for entry in event.entries]
        if self.prompts:
            shown, tokens = self.prompts[event.index]
            # The engine counts from the answer's first character, the client from the repeated prompt's.
            offsets = [len(shown) + offset for offset in offsets]
            if event.index not in self._begun:  # the prompt is repeated with the first piece
                text = shown + text
                entries, offsets = [*event.prompt_entries, *entries], [*self.names.offsets(tokens), *offsets]
        self._begun.add(event.index)
        logprobs = format_completion_logprobs(self.names, entries, offsets) if self.logprobs else None
        return {"index": event.index, "text": text, "logprobs": logprobs, "finish_reason": event.finish}

    def deltas(self, event: SequenceEvent) -> list[dict[str, Any]]:
        """Return the pieces that an event of a stream becomes."""
        return [self.choice(event)]


class ChatFormatter(CompletionFormatter):
    """Writes one request's answer as a chat completion."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, event: SequenceEvent) -> dict[str, Any]:
        """Return a choice with the assistant's message."""
        message = {"role": "assistant", "content": event.text, "refusal": None}
        return self._wrap({"message": message}, event)

    def deltas(self, event: SequenceEvent) -> list[dict[str, Any]]:
        """Return a piece of the message; the first piece tells the role."""
        delta: dict[str, str] = {"content": event.text} if event.text or not event.finish else {}
        if event.index not in self._begun:
            self._begun.add(event.index)
            delta = {"role": "assistant", "content": event.text}
        return [self._wrap({"delta": delta}, event)]

    def _wrap(self, content: dict[str, Any], event: SequenceEvent) -> dict[str, Any]:
        logprobs = format_chat_logprobs(self.names, event.entries) if self.logprobs else None
        return {"index": event.index, **content, "logprobs": logprobs, "finish_reason": event.finish}
