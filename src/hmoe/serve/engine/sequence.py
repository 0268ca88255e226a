"""A sequence that is being read and continued, and the job it belongs to."""

import threading
from collections import Counter
from collections.abc import Sequence as Series
from dataclasses import replace
from functools import cached_property

import torch

from hmoe.data.tokenizer import Decoding
from hmoe.errors import HMoEError
from hmoe.serve.engine.slots import Part
from hmoe.serve.engine.stop_texts import Writer
from hmoe.serve.engine.types import Ask, Deliver, Entry, Event, Failure, Finish, Used

_CONTEXT_TOKENS = 256  # before the answer, without which its first token may have another text


class Job:
    """What one request asked for: some sequences, whose events go to one place.

    Attributes:
        deadline: time.monotonic() at which it ends, finished or not.
        left: sequences that the engine still holds.
    """

    def __init__(self, asks: Series[Ask], deliver: Deliver, deadline: float, tokenizer: Decoding) -> None:
        self.deliver, self.deadline = deliver, deadline
        self.sequences = [Running(ask, index, self, tokenizer) for index, ask in enumerate(asks)]
        self.left = len(self.sequences)
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody waits for it any more; from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()


class Running:
    """The state of one sequence.

    Attributes:
        slot: where its keys and values are; -1 while it waits.
        cached: positions of them that are filled.
        ids: tokens drawn.
        counts: how often each was.
        failure: what it ended with, if not well.
    """

    def __init__(self, ask: Ask, index: int, job: Job, tokenizer: Decoding) -> None:
        self.ask, self.index, self.job = ask, index, job
        self.slot, self.cached = -1, 0
        self._last: Event | None = None
        self.failure: Failure | None = None
        self.ids: list[int] = []
        self.counts: Counter[int] = Counter()
        self.used = Used(prompt_tokens=len(ask.prompt))
        self._writer = Writer(tokenizer.detokenizer(ask.prompt[-_CONTEXT_TOKENS:]), ask.stops)
        self._shown = 0
        self._entries: list[Entry] = []
        self._prompt_entries: list[Entry] = [Entry(ask.prompt[0], None, ())] if ask.echo else []

    @property
    def decoding(self) -> bool:
        """The prompt has been read."""
        return self.cached >= len(self.ask.prompt)

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.ask.seed)

    def uniform(self) -> float:
        """Its next random number; what others draw has no influence."""
        if self.ask.how.temperature == 0:
            return 0.0
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def part(self, budget: int) -> Part:
        """What it wants to run next: its newest token, or up to `budget` tokens of its prompt."""
        if self.decoding:
            return Part(self.slot, self.cached, self.ids[-1:], self.ask.top_p_experts)
        tokens = self.ask.prompt[self.cached : self.cached + budget]
        return Part(self.slot, self.cached, tokens, self.ask.top_p_experts)

    def ran(self, rows: int, units: float, experts: float) -> None:
        """Its next `rows` tokens went through the model."""
        self.cached += rows
        self.used.add(Used(rows=rows, units=units, experts=experts))

    def tell_prompt(self, entries: Series[Entry]) -> None:
        """Log-probabilities of the next prompt tokens."""
        self._prompt_entries += entries

    def accept(self, token: int, entry: Entry | None, ends: Series[int]) -> None:
        """A token was drawn."""
        self.ids.append(token)
        self.counts[token] += 1
        self.used.new_tokens += 1
        if entry is not None:
            self._entries.append(replace(entry, offset=len(self._writer.text)))
        try:
            stopped = token in ends or self._writer.add(token)
        except HMoEError as error:
            self.fail(Failure(500, "tokenizer_error", str(error)))
            return
        if stopped:
            self.finish("stop")
        elif len(self.ids) >= self.ask.max_tokens:
            self.finish("length")
        elif self.ask.stream:
            self._show()

    def finish(self, reason: Finish) -> None:
        """Tell all that has not been told."""
        if self._writer.end():
            reason = "stop"
        text = self._writer.text
        if reason == "stop":
            self._entries = [entry for entry in self._entries if entry.offset < len(text)]
        self._end(Event(self.index, text[self._shown :], tuple(self._entries), tuple(self._prompt_entries), reason))

    def fail(self, failure: Failure) -> None:
        """It cannot go on."""
        self.failure = failure
        self._end(Event(self.index, failure=failure))

    def _end(self, event: Event) -> None:
        self._last = event

    @property
    def ended(self) -> bool:
        """It has finished or failed; `report` says so."""
        return self._last is not None

    def report(self) -> None:
        """Deliver the last event, once the engine holds it no more: who hears of it may ask again at once."""
        if self._last is not None:
            self.job.deliver(replace(self._last, used=self.used))

    def _show(self) -> None:
        shown = self._writer.shown()
        if shown <= self._shown:
            return
        ready = [entry for entry in self._entries if entry.offset < shown]
        self._entries = self._entries[len(ready) :]
        event = Event(self.index, self._writer.text[self._shown : shown], tuple(ready), tuple(self._prompt_entries))
        self._prompt_entries, self._shown = [], shown
        self.job.deliver(event)
