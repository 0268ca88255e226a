"""Continuous batching: one thread, and every step one pass of the model over all that is to be computed."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence as Series
from concurrent.futures import Future

import torch

from hmoe.errors import ConfigError, HMoEError
from hmoe.model.transformer import Transformer, check_causal, set_check_finite, without_capacities
from hmoe.serve.engine.batch import BatchRunner, EngineTokenizer, find_top_p_threshold
from hmoe.serve.engine.sequence import RunningSequence, SequenceJob
from hmoe.serve.engine.slots import KeyValueSlots, SequencePart
from hmoe.serve.engine.types import Deliver, EngineLimits, SequenceFailure, SequenceTask, UsageCounts

_LOG = logging.getLogger("hmoe.serve")
_CLOSING = SequenceFailure(503, "shutting_down", "the server is shutting down")
# How often the queue is searched for what nobody waits for any more: it may be long, so not every step.
_SWEEP_SECONDS = 0.25


class BusyError(HMoEError):
    """As many requests as allowed are open; a later one may be taken."""


class ClosedError(HMoEError):
    """The engine takes no requests any more."""


class Engine:
    """Runs the model in a thread of its own; methods may be called from any other.

    As a context it ends with the block: what is still open fails, and the thread has ended. A thread that is
    inside PyTorch when the interpreter goes down takes the process with it (SIGABRT).

    On a CPU it is fastest where no other living thread has used PyTorch's parallel operations.

    The model's router checks are switched off: a token that is not finite ends its own sequence only. So are
    capacities: what others ask must not change an answer.

    Attributes:
        top_p: threshold of the model's top-p router; None: it has none.
        capacity: tokens of a prompt and its continuation together.
        steps, failures: counts since the start; `failed_at` is the time.monotonic() of the last failure.
        total: what all sequences used.

    Raises:
        ConfigError: if there is no memory for the slots, or the model cannot generate.
    """

    def __init__(self, model: Transformer, tokenizer: EngineTokenizer, limits: EngineLimits) -> None:
        check_causal(model.config)
        set_check_finite(model, False)
        self.limits, self.capacity = limits, limits.context_length
        scaling = model.config.rope_scaling
        # Beyond its original length a dynamic scale depends on the longest sequence of a step: one long request
        # would change the positions of all others.
        if scaling is not None and scaling.kind == "dynamic":
            self.capacity = min(self.capacity, scaling.original_length or self.capacity)
        # A prompt may hold any id of a padded vocabulary; those beyond the tokenizer's are never drawn.
        self._vocab, self._last_drawn = model.config.vocab, min(tokenizer.vocab_size, model.config.vocab) - 1
        self._tokenizer, self.top_p = tokenizer, find_top_p_threshold(model)
        # By slot: [decoding 0][decoding 1] ... [still being read]. Only the engine's thread changes it.
        self._active: list[RunningSequence] = []
        self._waiting: deque[RunningSequence] = deque()
        self._open = 0
        self._swept_at = 0.0
        self._wake = threading.Condition()  # guards _waiting, _open, _closed
        self._closed = False
        self._give_up = False
        self.steps, self.failures, self.failed_at, self.total = 0, 0, -math.inf, UsageCounts()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(model, tokenizer, started), name="hmoe engine", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except RuntimeError as error:  # what PyTorch raises for memory
            raise ConfigError(
                f"max_batch = {limits.max_batch} sequences of {self.capacity} tokens: no memory for their "
                f"keys and values; lower one of them ({' '.join(str(error).split())[:100]})"
            ) from None

    def __enter__(self) -> "Engine":
        """Return the engine itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End at once, after the step that is being computed."""
        self.close(give_up=True)
        self.join()

    @property
    def alive(self) -> bool:
        """Tell whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._closed

    def load(self) -> dict[str, int]:
        """Return the numbers of open requests, and of sequences that wait and that run."""
        return {"open": self._open, "waiting": len(self._waiting), "running": len(self._active)}

    def check(self, task: SequenceTask) -> None:
        """Raise ConfigError for a prompt that is empty or too long, for wrong ids, or a threshold of no use.

        The message begins with the name that the field has in requests.
        """
        if not 1 <= len(task.prompt) <= self.capacity - task.max_tokens:
            raise ConfigError(
                f"prompt: {len(task.prompt)} tokens and max_tokens = {task.max_tokens}, together at most "
                f"{self.capacity}, this model's context; a prompt has at least 1"
            )
        highest = self._vocab - 1
        if not (min(task.prompt) >= 0 and max(task.prompt) <= highest):
            raise ConfigError(f"prompt: token ids must be from 0 to {highest}, the model's vocabulary")
        if task.bias and not (min(task.bias) >= 0 and max(task.bias) <= self._last_drawn):
            raise ConfigError(f"logit_bias: token ids must be from 0 to {self._last_drawn}")
        if task.top_p_experts is not None and self.top_p is None:
            raise ConfigError("top_p_experts: the router of this model is not top-p and has no threshold")

    def submit(self, tasks: Series[SequenceTask], deliver: Deliver, seconds: float) -> SequenceJob:
        """Queue sequences as one job; `deliver` gets their events, in the engine's thread.

        Args:
            tasks: what each sequence is to do.
            deliver: must be quick and must not raise.
            seconds: after these, whatever has not ended ends with failure 504.

        Raises:
            ConfigError: for a task that `check` refuses; nothing was queued.
            BusyError, ClosedError: nothing was queued.
        """
        for task in tasks:
            self.check(task)
        job = SequenceJob(tasks, deliver, time.monotonic() + seconds, self._tokenizer)
        with self._wake:
            if self._closed:
                raise ClosedError("the server is shutting down")
            if self._open >= self.limits.max_batch + self.limits.max_queue:
                raise BusyError(f"{self._open} requests are open, as many as allowed; try again later")
            self._open += 1
            self._waiting.extend(job.sequences)
            self._wake.notify()
        return job

    def close(self, *, give_up: bool = False) -> None:
        """Take no more requests, and return at once; if to give up, those that are open fail with 503."""
        with self._wake:
            self._closed = True
            self._give_up = give_up
            self._wake.notify()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread to end, which it does when closed and without work."""
        self._thread.join(seconds)

    def _run(self, model: Transformer, tokenizer: EngineTokenizer, started: "Future[None]") -> None:
        with torch.inference_mode(), without_capacities(model):
            # Memory is taken here, not by the caller, so that all parallel work is of this thread: each
            # thread that uses PyTorch's parallel operations keeps a set of OpenMP threads, and two sets take
            # turns on the same cores.
            try:
                self._slots = KeyValueSlots(model, self.limits.max_batch, self.capacity)
                self._passes = BatchRunner(model, tokenizer, self._slots)
            except BaseException as error:  # whoever constructs the engine waits for it and raises it there
                started.set_exception(error)
                return
            started.set_result(None)
            while self._has_work():
                self._drop_unwanted()
                parts, sequences, decoding = self._plan()
                try:
                    if parts:
                        self.steps += 1
                        self._passes.run(parts, sequences, decoding)
                except Exception:  # the thread must live; what was in this step cannot be trusted
                    _LOG.exception("a step failed")
                    for sequence in self._active:
                        if not sequence.ended:
                            sequence.fail(
                                SequenceFailure(500, "internal_error", "the server failed on this request")
                            )
                self._free_ended()

    def _has_work(self) -> bool:
        """Wait for work; return False when closed and none is left."""
        with self._wake:
            while not (self._active or self._waiting or self._closed):
                self._wake.wait()
            return bool(self._active or self._waiting)

    def _drop_unwanted(self) -> None:
        """End what was cancelled, what is too late, and, when closing, everything."""
        now = time.monotonic()
        for sequence in self._active:
            failure = self._find_reason_to_end(sequence, now)
            if failure:
                sequence.fail(failure)
        self._free_ended()
        if now - self._swept_at < _SWEEP_SECONDS and not self._give_up:
            return
        self._swept_at = now
        with self._wake:
            waiting, self._waiting = self._waiting, deque()
            for sequence in waiting:
                failure = self._find_reason_to_end(sequence, now)
                if failure is None:
                    self._waiting.append(sequence)
                else:
                    sequence.fail(failure)
        # Outside the lock, which must not be held while events are delivered.
        for sequence in waiting:
            if sequence.ended:
                self._release(sequence)

    def _find_reason_to_end(self, sequence: RunningSequence, now: float) -> SequenceFailure | None:
        if sequence.job.cancelled:
            return SequenceFailure(499, "cancelled", "the client went away")
        if self._give_up:
            return _CLOSING
        if now > sequence.job.deadline:
            return SequenceFailure(504, "timeout", "the request took longer than this server allows")
        return None

    def _plan(self) -> tuple[list[SequencePart], list[RunningSequence], int]:
        """Return parts for the next step, their sequences, and how many of them decode.

        Every decoding sequence gets one token; then come prompts, oldest first, up to `prefill_tokens` in
        all, so that long prompts delay running answers by no more than that.
        """
        budget = self.limits.prefill_tokens
        decoding = sum(sequence.decoding for sequence in self._active)
        # At most one is still being read, the last: another begins only when the budget reaches beyond it.
        parts = [sequence.next_part(budget) for sequence in self._active]
        budget -= sum(len(part.tokens) for part in parts[decoding:])
        while budget > 0 and len(self._active) < self.limits.max_batch:
            with self._wake:
                if not self._waiting:
                    break
                sequence = self._waiting.popleft()
            sequence.slot = len(self._active)
            self._active.append(sequence)
            parts.append(sequence.next_part(budget))
            budget -= len(parts[-1].tokens)
        return parts, list(self._active), decoding

    def _free_ended(self) -> None:
        """Free slots; those that decode move together in front, and what is still being read behind them."""
        # There must be no holes: a step attends to slots 0, 1, ... of decoding sequences as one view.
        ended = [sequence for sequence in self._active if sequence.ended]
        for sequence in ended:
            if sequence.failure is not None and sequence.failure.status == 500:
                self.failures += 1
                self.failed_at = time.monotonic()
                # What the model wrote may not be finite, and masked positions would carry it to the next owner.
                self._slots.clear(sequence.slot)
        for sequence in ended:
            # [0][hole][2][last decoding][read]: last goes to the hole, and what is read moves up by one.
            # Moving the last one copies a single sequence where closing ranks would copy all behind the hole.
            hole, last = sequence.slot, sum(s.decoding for s in self._active) - 1
            moves = [(last, hole)] if hole < last else []
            moves += [(slot, slot - 1) for slot in range(max(hole, last) + 1, len(self._active))]
            for source, target in moves:
                other = self._active[source]
                self._slots.move(source, target, other.cached)
                other.slot, self._active[target] = target, other
            self._active.pop()
            self._release(sequence)

    def _release(self, sequence: RunningSequence) -> None:
        self.total.add(sequence.used)
        with self._wake:
            sequence.job.num_left -= 1
            if sequence.job.num_left == 0:
                self._open -= 1
        # Last, so that whoever hears of the end finds the place free: a client may ask again at once.
        sequence.report()
