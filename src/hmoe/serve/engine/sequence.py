"""A sequence that is being read and continued, and the job it belongs to."""

import threading
from collections import Counter
from collections.abc import Sequence as Series
from dataclasses import replace
from functools import cached_property

import torch

from hmoe.data.tokenizer import Decoding
from hmoe.errors import HMoEError
from hmoe.serve.engine.slots import SequencePart
from hmoe.serve.engine.stop_texts import StoppableText
from hmoe.serve.engine.types import (
    Deliver,
    FinishReason,
    SequenceEvent,
    SequenceFailure,
    SequenceTask,
    TokenLogprob,
    UsageCounts,
)

_CONTEXT_TOKENS = 256  # of the prompt's end, without which the answer's first token may have another text


class SequenceJob:
    """Holds what one request asked for: some sequences, whose events go to one place.

    Attributes:
        deadline: time.monotonic() at which it ends, finished or not.
        num_left: sequences that the engine still holds.
    """

    def __init__(
        self, tasks: Series[SequenceTask], deliver: Deliver, deadline: float, tokenizer: Decoding
    ) -> None:
        self.deliver, self.deadline = deliver, deadline
        self.sequences = [RunningSequence(task, index, self, tokenizer) for index, task in enumerate(tasks)]
        self.num_left = len(self.sequences)
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Note that nobody waits for it any more; may be called from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Tell whether nobody waits for the job any more."""
        return self._cancelled.is_set()


class RunningSequence:
    """Holds the state of one sequence, which only the engine's thread changes.

    Attributes:
        slot: where its keys and values are; -1 while it waits.
        cached: positions of them that are filled.
        ids: tokens drawn.
        counts: how often each was.
        failure: what it ended with, if not well.
    """

    def __init__(self, task: SequenceTask, index: int, job: SequenceJob, tokenizer: Decoding) -> None:
        self.task, self.index, self.job = task, index, job
        self.slot, self.cached = -1, 0
        self._last: SequenceEvent | None = None
        self.failure: SequenceFailure | None = None
        self.ids: list[int] = []
        self.counts: Counter[int] = Counter()
        self.used = UsageCounts(prompt_tokens=len(task.prompt))
        self._output = StoppableText(tokenizer.detokenizer(task.prompt[-_CONTEXT_TOKENS:]), task.stops)
        self._num_shown = 0  # characters of the text that have been delivered
        self._entries: list[TokenLogprob] = []  # of drawn tokens, not delivered yet
        # Nothing comes before the first token of a prompt, so it has no probability.
        self._prompt_entries: list[TokenLogprob] = (
            [TokenLogprob(task.prompt[0], None, ())] if task.echo else []
        )

    @property
    def decoding(self) -> bool:
        """Tell whether the whole prompt has been read."""
        return self.cached >= len(self.task.prompt)

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.task.seed)

    def draw_uniform(self) -> float:
        """Return its next random number in [0, 1); what others draw has no influence on it."""
        if self.task.sampling.temperature == 0:
            return 0.0
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def next_part(self, budget: int) -> SequencePart:
        """Return what it wants to run next: its newest token, or up to `budget` tokens of its prompt."""
        if self.decoding:
            return SequencePart(self.slot, self.cached, self.ids[-1:], self.task.top_p_experts)
        tokens = self.task.prompt[self.cached : self.cached + budget]
        return SequencePart(self.slot, self.cached, tokens, self.task.top_p_experts)

    def advance(self, rows: int, units: float, experts: float) -> None:
        """Note that its next `rows` tokens went through the model, and what they activated."""
        self.cached += rows
        self.used.add(UsageCounts(rows=rows, units=units, experts=experts))

    def add_prompt_entries(self, entries: Series[TokenLogprob]) -> None:
        """Take log-probabilities of the next prompt tokens."""
        self._prompt_entries += entries

    def accept(self, token: int, entry: TokenLogprob | None, ends: Series[int]) -> None:
        """Take the token that was drawn and its log-probabilities; end if it is one of `ends` or the last."""
        self.ids.append(token)
        self.counts[token] += 1
        self.used.new_tokens += 1
        if entry is not None:
            self._entries.append(replace(entry, offset=len(self._output.text)))
        try:
            stopped = token in ends or self._output.add(token)
        except HMoEError as error:  # a token that this tokenizer cannot decode ends this sequence alone
            self.fail(SequenceFailure(500, "tokenizer_error", str(error)))
            return
        if stopped:
            self.finish("stop")
        elif len(self.ids) >= self.task.max_tokens:
            self.finish("length")
        elif self.task.stream:
            self._deliver_safe_text()

    def finish(self, reason: FinishReason) -> None:
        """End well, and keep for `report` all text and entries that have not been delivered."""
        # What was an incomplete character until now may complete a stop text.
        if self._output.end():
            reason = "stop"
        text = self._output.text
        if reason == "stop":  # tokens of the stop text itself, and of what is behind it, are not reported
            self._entries = [entry for entry in self._entries if entry.offset < len(text)]
        entries, prompt_entries = tuple(self._entries), tuple(self._prompt_entries)
        self._last = SequenceEvent(self.index, text[self._num_shown :], entries, prompt_entries, reason)

    def fail(self, failure: SequenceFailure) -> None:
        """End with a failure, which is all that its last event tells."""
        self.failure = failure
        self._last = SequenceEvent(self.index, failure=failure)

    @property
    def ended(self) -> bool:
        """Tell whether it has finished or failed; `report` tells its job."""
        return self._last is not None

    def report(self) -> None:
        """Deliver the last event, once the engine holds it no more: who hears of it may ask again at once."""
        if self._last is not None:
            self.job.deliver(replace(self._last, used=self.used))

    def _deliver_safe_text(self) -> None:
        num_safe = self._output.count_safe()
        if num_safe <= self._num_shown:
            return
        # Entries go out with the characters of their token, so a client can join both lists.
        ready = [entry for entry in self._entries if entry.offset < num_safe]
        self._entries = self._entries[len(ready) :]
        text = self._output.text[self._num_shown : num_safe]
        event = SequenceEvent(self.index, text, tuple(ready), tuple(self._prompt_entries))
        self._prompt_entries, self._num_shown = [], num_safe
        self.job.deliver(event)
