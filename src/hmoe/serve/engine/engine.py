"""Continuous batching: one thread, every step one pass of the model over whatever is to be read and written now."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence as Series
from concurrent.futures import Future

import torch

from hmoe.errors import ConfigError, HMoEError
from hmoe.model.transformer import Transformer, check_causal, dropless, set_check_finite
from hmoe.serve.engine.batch import Passes, Vocabulary, threshold
from hmoe.serve.engine.sequence import Job, Running
from hmoe.serve.engine.slots import Part, Slots
from hmoe.serve.engine.types import Ask, Deliver, Failure, Limits, Used

_LOG = logging.getLogger("hmoe.serve")
_CLOSING = Failure(503, "shutting_down", "the server is shutting down")
_SWEEP_SECONDS = 0.25  # how often those that wait are looked through for what nobody waits for any more


class BusyError(HMoEError):
    """As many requests as allowed are open; try again later."""


class ClosedError(HMoEError):
    """The engine takes no requests any more."""


class Engine:
    """Runs the model in a thread of its own; methods may be called from any other.

    As a context it ends with the block: what is still open fails, and the thread has ended. A thread that is inside PyTorch
    when the interpreter goes down takes the process with it (SIGABRT).

    On a CPU it is fastest where no other living thread has used PyTorch's parallel operations.

    The model's router checks are switched off: a token that is not finite ends its own sequence only. So are capacities: what
    others ask must not change an answer.

    Attributes:
        top_p: threshold of the model's top-p router; None: it has none.
        capacity: tokens of a prompt and its continuation together.
        steps, failures: counts since the start; `failed_at` is the time.monotonic() of the last failure.
        total: what all sequences used.

    Raises:
        ConfigError: if there is no memory for the slots, or the model cannot generate.
    """

    def __init__(self, model: Transformer, tokenizer: Vocabulary, limits: Limits) -> None:
        check_causal(model.config)
        set_check_finite(model, False)
        self.limits, self.capacity = limits, limits.context_length
        scaling = model.config.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":  # else the longest sequence would turn all others
            self.capacity = min(self.capacity, scaling.original_length or self.capacity)
        self._vocab, self._last_drawn = model.config.vocab, min(tokenizer.vocab_size, model.config.vocab) - 1
        self._tokenizer, self.top_p = tokenizer, threshold(model)
        self._active: list[Running] = []  # by slot; those that decode come first
        self._waiting: deque[Running] = deque()
        self._open = 0
        self._swept = 0.0
        self._wake = threading.Condition()  # guards _waiting, _open, _closed
        self._closed = False
        self._give_up = False
        self.steps, self.failures, self.failed_at, self.total = 0, 0, -math.inf, Used()
        made: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(model, tokenizer, made), name="hmoe engine", daemon=True
        )
        self._thread.start()
        try:
            made.result()
        except RuntimeError as error:  # what PyTorch raises for memory
            raise ConfigError(
                f"max_batch = {limits.max_batch} sequences of {self.capacity} tokens: no memory for their keys and values; "
                f"lower one of them ({' '.join(str(error).split())[:100]})"
            ) from None

    def __enter__(self) -> "Engine":
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End at once, after the step that is being computed."""
        self.close(give_up=True)
        self.join()

    @property
    def alive(self) -> bool:
        """The thread runs and takes requests."""
        return self._thread.is_alive() and not self._closed

    def load(self) -> dict[str, int]:
        """Open requests, and sequences that wait and that run."""
        return {"open": self._open, "waiting": len(self._waiting), "running": len(self._active)}

    def submit(self, asks: Series[Ask], deliver: Deliver, seconds: float) -> Job:
        """Queue sequences; `deliver` gets their events, in the engine's thread.

        Args:
            asks: what each sequence is to do.
            deliver: must be quick and must not raise.
            seconds: after these, whatever has not ended ends with failure 504.

        Raises:
            ConfigError: for a prompt that is empty or too long, ids out of range, or a threshold without a top-p router.
            BusyError, ClosedError: nothing was queued.
        """
        for ask in asks:
            self._check(ask)
        job = Job(asks, deliver, time.monotonic() + seconds, self._tokenizer)
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
        """Take no more requests; if to give up, those that are open fail with 503. Returns at once, see `join`."""
        with self._wake:
            self._closed = True
            self._give_up = give_up
            self._wake.notify()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread to end, which it does when closed and without work."""
        self._thread.join(seconds)

    def _run(self, model: Transformer, tokenizer: Vocabulary, made: "Future[None]") -> None:
        with torch.inference_mode(), dropless(model):
            try:  # here, so that all parallel work is of one thread; see `hmoe serve`
                self._slots = Slots(model, self.limits.max_batch, self.capacity)
                self._passes = Passes(model, tokenizer, self._slots)
            except BaseException as error:
                made.set_exception(error)
                return
            made.set_result(None)
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
                            sequence.fail(Failure(500, "internal_error", "the server failed on this request"))
                self._free_ended()

    def _has_work(self) -> bool:
        """Wait for some; False when closed and none is left."""
        with self._wake:
            while not (self._active or self._waiting or self._closed):
                self._wake.wait()
            return bool(self._active or self._waiting)

    def _drop_unwanted(self) -> None:
        """End what was cancelled, what is too late, and, when closing, everything."""
        now = time.monotonic()
        for sequence in self._active:
            verdict = self._verdict(sequence, now)
            if verdict:
                sequence.fail(verdict)
        self._free_ended()
        if now - self._swept < _SWEEP_SECONDS and not self._give_up:
            return
        self._swept = now
        with self._wake:
            waiting, self._waiting = self._waiting, deque()
            for sequence in waiting:
                verdict = self._verdict(sequence, now)
                if verdict is None:
                    self._waiting.append(sequence)
                else:
                    sequence.fail(verdict)
        for sequence in waiting:
            if sequence.ended:
                self._release(sequence)

    def _verdict(self, sequence: Running, now: float) -> Failure | None:
        if sequence.job.cancelled:
            return Failure(499, "cancelled", "the client went away")
        if self._give_up:
            return _CLOSING
        if now > sequence.job.deadline:
            return Failure(504, "timeout", "the request took longer than this server allows")
        return None

    def _plan(self) -> tuple[list[Part], list[Running], int]:
        """One token of every decoding sequence, then prompts, oldest first; and how many decode."""
        budget = self.limits.prefill_tokens
        decoding = sum(sequence.decoding for sequence in self._active)
        parts = [sequence.part(budget) for sequence in self._active]  # at most one is still being read, the last
        budget -= sum(len(part.tokens) for part in parts[decoding:])
        while budget > 0 and len(self._active) < self.limits.max_batch:
            with self._wake:
                if not self._waiting:
                    break
                sequence = self._waiting.popleft()
            sequence.slot = len(self._active)
            self._active.append(sequence)
            parts.append(sequence.part(budget))
            budget -= len(parts[-1].tokens)
        return parts, list(self._active), decoding

    def _free_ended(self) -> None:
        """Free slots; those that decode move together in front, and what is still being read behind them."""
        ended = [sequence for sequence in self._active if sequence.ended]
        for sequence in ended:
            if sequence.failure is not None and sequence.failure.status == 500:
                self.failures += 1
                self.failed_at = time.monotonic()
                self._slots.clear(sequence.slot)
        for sequence in ended:
            hole, last = sequence.slot, sum(s.decoding for s in self._active) - 1
            moves = [(last, hole)] if hole < last else []
            moves += [(i, i - 1) for i in range(max(hole, last) + 1, len(self._active))]
            for source, target in moves:
                other = self._active[source]
                self._slots.move(source, target, other.cached)
                other.slot, self._active[target] = target, other
            self._active.pop()
            self._release(sequence)

    def _release(self, sequence: Running) -> None:
        self.total.add(sequence.used)
        with self._wake:
            sequence.job.left -= 1
            self._open -= sequence.job.left == 0
        sequence.report()

    def _check(self, ask: Ask) -> None:
        if not 1 <= len(ask.prompt) <= self.capacity - ask.max_tokens:
            raise ConfigError(
                f"prompt: {len(ask.prompt)} tokens and max_tokens = {ask.max_tokens}, together at most "
                f"{self.capacity}, this model's context; a prompt has at least 1"
            )
        highest = self._vocab - 1
        if not (min(ask.prompt) >= 0 and max(ask.prompt) <= highest):
            raise ConfigError(f"prompt: token ids must be from 0 to {highest}, the model's vocabulary")
        if ask.bias and not (min(ask.bias) >= 0 and max(ask.bias) <= self._last_drawn):
            raise ConfigError(f"logit_bias: token ids must be from 0 to {self._last_drawn}")
        if ask.top_p_experts is not None and self.top_p is None:
            raise ConfigError("top_p_experts: the router of this model is not top-p and has no threshold")
