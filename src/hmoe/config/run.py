"""What a run is: one frozen tree of checked values with units. No torch, so `hmoe plan` answers at once.

A recipe is YAML with these sections; `base: PRESET` inherits. `hmoe config PRESET` prints one in full.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, model_validator

from hmoe.config.parallel import EXPERT_KEYS, OFFLOAD_KEYS, ParallelConfig
from hmoe.config.section import Section
from hmoe.errors import ConfigError
from hmoe.specs.model import ModelSpec
from hmoe.specs.plain import to_plain

BYTE_VOCAB = 257  # 256 bytes and the separator
MOST_MICRO_BATCHES = 2**20
Count = Annotated[int, Field(ge=1, le=10**15)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def parse_bpe_size(name: str) -> int | None:
    """Return SIZE of a `bpe:SIZE` tokenizer name, None for another name.

    Raises:
        ConfigError: for a size below 257 (256 bytes and the separator) or no number.
    """
    if not name.startswith("bpe:"):
        return None
    size = name.removeprefix("bpe:")
    if not re.fullmatch("[0-9]{1,8}", size) or not BYTE_VOCAB <= int(size) <= 2**24:
        raise ConfigError(
            f"tokenizer = {name!r}: bpe:SIZE needs a size from {BYTE_VOCAB} to {2**24}, such as bpe:8192"
        )
    return int(size)


class DataConfig(Section):
    """Which tokens, in which batches."""

    path: Annotated[
        str,
        Field(
            min_length=1, description="a folder made by `hmoe data prepare`, or `corpus`: the embedded one"
        ),
    ]
    tokenizer: Annotated[
        str | None, Field(description="for `corpus`: bytes or bpe:SIZE; null: bpe of model.vocab")
    ] = None
    sequence_length: Annotated[int, Field(ge=1, le=2**22, description="tokens per sequence")]
    batch_tokens: Annotated[Count, Field(description="tokens per optimiser step")]
    micro_batches: Annotated[
        int | None,
        Field(
            ge=1,
            le=MOST_MICRO_BATCHES,
            description="parts of a batch; router statistics are per part; "
            "null: chosen from the device's memory when the run begins",
        ),
    ] = None
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=1e12)]] | None,
        Field(description="sampling weight per domain; null: as prepared"),
    ] = None
    verify: Annotated[bool, Field(description="check every shard's SHA-256 before training")] = True

    @property
    def batch_sequences(self) -> int:
        """Sequences per optimiser step."""
        return self.batch_tokens // self.sequence_length

    @property
    def num_micro_batches(self) -> int:
        """Parts of a batch: one where nothing was chosen.

        `hmoe.config.memory.choose_unset` chooses when a run begins.
        """
        return self.micro_batches or 1

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.batch_tokens % self.sequence_length:
            unit = self.sequence_length * (self.micro_batches or 1)
            nearest = max(1, round(self.batch_tokens / unit)) * unit
            raise ValueError(
                f"batch_tokens = {self.batch_tokens}: must be a multiple of sequence_length; nearest is {nearest}"
            )
        if self.batch_sequences % (self.micro_batches or 1):
            raise ValueError(
                f"micro_batches = {self.micro_batches}: must divide the {self.batch_sequences} sequences of a batch"
            )
        if "\0" in self.path:
            raise ValueError("path: must not hold a NUL character")
        if self.path != "corpus":
            self.no_effect("with prepared data, which has its own tokenizer", "tokenizer")
        elif self.tokenizer not in (None, "bytes") and parse_bpe_size(self.tokenizer) is None:
            raise ValueError(
                f"tokenizer = {self.tokenizer!r}: must be bytes or bpe:SIZE for the embedded corpus"
            )
        if self.weights is not None and (
            not self.weights or any(w < 0 for w in self.weights.values()) or not any(self.weights.values())
        ):
            raise ValueError(f"weights = {self.weights}: must be at least 0, one of them above 0")
        return self


class OptimConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: Annotated[float, Field(gt=0, le=100, description="peak learning rate")]
    betas: Annotated[tuple[float, float], Field(description="AdamW moment decays")] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0, le=1, description="AdamW epsilon")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=10, description="decoupled, times the learning rate")] = 0.1
    decay_all: Annotated[
        bool, Field(description="decay norms, embeddings and routers too, as the paper does")
    ] = False
    clip: Annotated[
        float | None, Field(gt=0, le=1e6, description="largest gradient norm; null: no clipping")
    ] = 1.0
    warmup_steps: Annotated[int, Field(ge=0, le=10**9, description="steps of linear warm-up from 0")] = 0
    schedule: Annotated[
        Literal["constant", "cosine", "wsd"], Field(description="after warm-up; wsd: warm-up, stable, decay")
    ] = "constant"
    schedule_steps: Annotated[
        int | None, Field(ge=1, le=10**9, description="cosine, wsd: step at which lr reaches its floor")
    ] = None
    decay_steps: Annotated[
        int | None, Field(ge=1, le=10**9, description="wsd: steps of the final linear decay")
    ] = None
    floor: Annotated[Fraction | None, Field(description="cosine, wsd: final lr / peak lr; null: 0.1")] = None

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)}: each must be in [0, 1)")
        if self.schedule == "constant":
            self.no_effect("with a constant schedule", "schedule_steps", "floor")
        elif self.schedule_steps is None:
            raise ValueError(
                f"schedule_steps: missing, the {self.schedule} schedule needs its length in steps"
            )
        elif self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule_steps = {self.schedule_steps}: must be above warmup_steps = {self.warmup_steps}"
            )
        if self.schedule != "wsd":
            self.no_effect(f"with a {self.schedule} schedule", "decay_steps")
        elif self.decay_steps is None or self.decay_steps > (self.schedule_steps or 0) - self.warmup_steps:
            raise ValueError(
                f"decay_steps = {self.decay_steps}: wsd needs 1 to schedule_steps - warmup_steps"
            )
        return self


class TrainConfig(Section):
    """Budget, precision, and how often to say, check and save. Training ends at the first budget reached."""

    steps: Annotated[Count | None, Field(description="optimiser steps")] = None
    tokens: Annotated[Count | None, Field(description="training tokens")] = None
    flops: Annotated[
        float | None, Field(gt=0, le=1e40, description="training FLOPs of the experts really activated")
    ] = None
    seconds: Annotated[
        float | None, Field(gt=0, le=1e10, description="wall-clock time; never drives the schedule")
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16", "float64"],
        Field(description="bfloat16: autocast with float32 weights"),
    ] = "float32"
    activation_checkpointing: Annotated[
        bool | None,
        Field(
            description="recompute each block in the backward pass; "
            "null: chosen from the device's memory when the run begins"
        ),
    ] = None
    compile: Annotated[
        bool, Field(description="torch.compile each block; changes bits, the first step takes a minute")
    ] = False
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: cuda where there is one")] = (
        "auto"
    )
    save_every: Annotated[
        Count, Field(description="steps between checkpoints; one is always written at the end")
    ] = 100
    keep: Annotated[int, Field(ge=2, le=10**6, description="newest checkpoints to keep")] = 2
    log_every: Annotated[Count, Field(description="steps between rows of metrics.jsonl")] = 1
    eval_every: Annotated[
        int, Field(ge=0, le=10**9, description="steps between validations; 0: only at the end")
    ] = 0
    eval_flops: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1e40)], ...],
        Field(description="training FLOPs; a validation follows the first step that reaches each"),
    ] = ()
    eval_sequences: Annotated[Count, Field(description="validation sequences, always the same ones")] = 64
    sample_every: Annotated[int, Field(ge=0, le=10**9, description="steps between text samples; 0: none")] = 0
    inspect_every: Annotated[
        int,
        Field(
            ge=0,
            le=10**9,
            description="steps between files in probe/, which tell what routers do with a fixed text of up to 512 "
            "tokens; one more at the end; 0: none",
        ),
    ] = 0
    sample_prompt: Annotated[str, Field(max_length=10_000, description="text that samples continue")] = "The"
    sample_tokens: Annotated[int, Field(ge=1, le=4096, description="tokens per sample")] = 60
    dead_after: Annotated[
        Count, Field(description="steps without a token after which an expert is announced as dead")
    ] = 100

    @property
    def recomputes_blocks(self) -> bool:
        """Whether activations are checkpointed: no where nothing was chosen (`hmoe.config.memory.choose_unset`)."""
        return bool(self.activation_checkpointing)

    def measure_progress(self, step: int, tokens: int, flops: float, seconds: float) -> float:
        """Return the share of the budget that is used up, of several the largest; 1 ends the run."""
        pairs = [(step, self.steps), (tokens, self.tokens), (flops, self.flops), (seconds, self.seconds)]
        return max(used / limit for used, limit in pairs if limit)

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if not (self.steps or self.tokens or self.flops or self.seconds):
            raise ValueError("steps: missing, give at least one budget of steps, tokens, flops, seconds")
        return self


class RunConfig(Section):
    """Everything a run depends on; two runs of equal RunConfig on one machine end with equal bits."""

    seed: Annotated[
        int, Field(ge=0, le=2**63 - 1, description="of weights, sample order and text samples")
    ] = 0
    model: Annotated[ModelSpec, PlainSerializer(to_plain)]
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()

    @property
    def corpus_tokenizer(self) -> str:
        """Tokenizer of the embedded corpus: the one named, else byte-level BPE of the model's vocabulary."""
        return self.data.tokenizer or f"bpe:{self.model.vocab}"

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.data.path == "corpus":
            needed = (
                BYTE_VOCAB
                if self.data.tokenizer is None
                else parse_bpe_size(self.data.tokenizer) or BYTE_VOCAB
            )
            if self.model.vocab < needed:
                raise ValueError(
                    f"model.vocab = {self.model.vocab}: the tokenizer needs at least {needed}; nearest is {needed}"
                )
        moe = self.model.moe
        if not self.model.causal and self.train.sample_every:
            raise ValueError(
                f"train.sample_every = {self.train.sample_every}: a model with "
                f"model.moe.router.name = {moe.router.name if moe else None} cannot generate text; nearest is 0"
            )
        if self.train.compile and moe is not None and (moe.router.needs_noise or moe.hyper):
            why = (
                "router that draws random numbers"
                if moe.router.needs_noise
                else "model with HyperExperts (model.moe.hyper)"
            )
            raise ValueError(
                f"train.compile = true: a {why} would be compiled anew for every micro-batch; nearest is false"
            )
        self.parallel.check_offload(self.model, self.train.precision, self.train.compile)
        return self


# Keys that a recipe may leave unset: the run chooses them when it begins, and they are its own from then on.
CHOSEN = frozenset(("data.micro_batches", "train.activation_checkpointing"))
# Keys that may change when a run is resumed, because they change no bit: budgets, logging, how often to save and, in
# exact mode, how processes share it, and where things lie. The data and the kind of device are bound by what the
# checkpoint records of them, not by how they are named.
_BUDGETS = ("steps", "tokens", "flops", "seconds")
_LOGGING = (
    "log_every", "eval_every", "eval_flops", "eval_sequences", "sample_every", "inspect_every", "sample_prompt",
    "sample_tokens", "dead_after",
)  # fmt: skip
RESUMABLE = frozenset(
    (
        "data.path",
        "data.verify",
        *(f"train.{key}" for key in (*_BUDGETS, *_LOGGING, "save_every", "keep", "device")),
        *(
            f"parallel.{key}"
            for key in ("shard", "experts", "replicas", "offload", *EXPERT_KEYS, *OFFLOAD_KEYS)
        ),
    )
)
