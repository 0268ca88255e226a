"""What the engine is asked to do, and what it answers: plain values, without threads or HTTP."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hmoe.model.generate import Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class EngineLimits:
    """Limits how much work the engine takes on at a time.

    Attributes:
        max_batch: sequences computed at a time; key and value memory is max_batch x context_length positions.
        max_queue: requests that may wait besides those.
        context_length: tokens of a prompt and its continuation together.
        prefill_tokens: prompt tokens read per step, besides one new token of every running sequence.
    """

    max_batch: int = 8
    max_queue: int = 64
    context_length: int = 2048
    prefill_tokens: int = 256


@dataclass(frozen=True)
class SequenceTask:
    """Says what to do with one sequence: continue it or score it, and how.

    Attributes:
        prompt: token ids, at least one; with max_tokens at most context_length.
        max_tokens: new tokens at most; 0 only reads the prompt.
        sampling: temperature, top_k, top_p.
        seed: of this sequence's own draws.
        bias: added to the logits of tokens.
        frequency_penalty, presence_penalty: subtracted per earlier drawing of a token, and once if there was
            any.
        stops: texts that end the continuation and are left out of it.
        logprobs: number of most probable tokens to report with each token; None reports nothing.
        echo: report log-probabilities of the prompt too.
        top_p_experts: threshold of the top-p router for these tokens; None: the model's own.
        stream: deliver text as it comes, else all at the end.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 16
    # A default that is an object is safe here: it is frozen too.
    sampling: Sampling = Sampling(temperature=1.0)  # noqa: RUF009
    seed: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    top_p_experts: float | None = None
    stream: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """Tells the log-probability of a token, the most probable tokens in its place, and where its text begins.

    The first token of a prompt has no log-probability. Offsets are characters of the continuation; those of
    prompt tokens are 0, because whoever shows the prompt knows its text and counts them itself.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int = 0


@dataclass
class UsageCounts:
    """Counts what a sequence, or several together, cost.

    Attributes:
        prompt_tokens, new_tokens: read and drawn.
        rows: tokens that went through the model.
        units, experts: hidden units and experts activated, summed over rows and MoE layers.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    # Fewer than both together: the last token that is drawn need not go through the model.
    rows: int = 0
    units: float = 0.0
    experts: float = 0.0

    def add(self, other: "UsageCounts") -> None:
        """Add the counts of another to these."""
        self.prompt_tokens += other.prompt_tokens
        self.new_tokens += other.new_tokens
        self.rows += other.rows
        self.units += other.units
        self.experts += other.experts


@dataclass(frozen=True)
class SequenceFailure:
    """Says why a sequence ended early; `status` is the HTTP status for it, `code` a word for programs."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class SequenceEvent:
    """Tells news of sequence `index` of a job: its new text, and at the end `finish` or `failure`."""

    index: int
    text: str = ""
    entries: tuple[TokenLogprob, ...] = ()
    prompt_entries: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    failure: SequenceFailure | None = None
    used: UsageCounts | None = None  # with the last event only


Deliver = Callable[[SequenceEvent], None]
