"""What a run does with its model between steps: loss on held-out text, and a sample of its own."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hmoe.data.batches import MicroBatch, count_bytes_per_token, load_validation
from hmoe.errors import NonFiniteError
from hmoe.model.generate import Sampling, Vocabulary, generate_tokens
from hmoe.model.likelihood import measure_mean_nll
from hmoe.runs.validations import BITS, LOSS, TOKENS
from hmoe.train.compiled import run_eagerly
from hmoe.train.feed import place_parts
from hmoe.train.session import Session


@contextlib.contextmanager
def _evaluating(session: Session) -> Iterator[None]:
    """Put the model into evaluation mode for a while, computed eagerly."""
    # A router may have noise and another capacity in training, for whose shapes blocks are compiled.
    session.model.eval()
    try:
        with session.look_at_all(), run_eagerly(session.config), session.processes.gathering(session.model):
            yield
    finally:
        session.model.train()


def validate(session: Session) -> dict[str, float]:
    """Return the validation loss in nats per token and in bits per byte of text, and of how many tokens it is.

    Several processes share the sequences, and all return the same. Nothing is returned without a validation split,
    nor for a loss that is NaN or infinite.
    """
    config, processes = session.config, session.processes
    inputs_BL, targets_BL = load_validation(
        session.index, config.data.sequence_length, config.train.eval_sequences, session.batches.packing
    )
    num_tokens = targets_BL.size
    if not num_tokens:
        return {}
    # As many sequences at a time as a micro-batch holds: those are known to fit into memory.
    size = max(1, config.data.batch_sequences // config.data.num_micro_batches)
    slices = [slice(first, first + size) for first in range(0, len(inputs_BL), size)]
    totals = []
    with (
        _evaluating(session),
        torch.autocast(session.device, torch.bfloat16, enabled=config.train.precision == "bfloat16"),
    ):
        for first in range(0, len(slices), processes.size):
            # Who has nothing left computes the last once more: a shared model takes all for a pass.
            some = slices[min(first + processes.rank, len(slices) - 1)]
            part = MicroBatch(0, inputs_BL[some], targets_BL[some])
            (placed,) = place_parts([part], torch.device(session.device))
            nll = measure_mean_nll(session.model, placed.tokens_BL, placed.targets_BL)
            own = torch.tensor(nll * placed.targets_BL.numel(), dtype=torch.float64)
            totals += [float(total) for total in processes.gather(own)]
    total = sum(totals[: len(slices)])
    if not math.isfinite(total):
        return {}
    nats = total / num_tokens
    bits = nats / math.log(2) / count_bytes_per_token(session.index, "valid")
    return {LOSS: nats, BITS: bits, TOKENS: num_tokens}


def write_sample(session: Session) -> str:
    """Return a continuation of the sample prompt, fixed by (seed, step); "" if logits are not finite."""
    config, tokenizer = session.config, session.tokenizer
    begin = session.index.begin
    prompt = [*begin, *tokenizer.encode([config.train.sample_prompt])[0]] or [tokenizer.separator]
    sampling, seed = Sampling(temperature=0.8, top_p=0.95), config.seed + session.counts.step
    # Several processes write on to the last token: one that saw an end where others do not would leave them waiting.
    words: Vocabulary = tokenizer if session.processes.size == 1 else _Endless(tokenizer.vocab_size)
    try:
        with _evaluating(session):
            new = list(
                generate_tokens(session.model, prompt, config.train.sample_tokens, sampling, seed, words)
            )
    except NonFiniteError:
        return ""
    end = next((place for place, token in enumerate(new) if token in tokenizer.ends), len(new))
    return tokenizer.decode(prompt + new[: end + 1])


@dataclass
class _Endless:
    """A vocabulary without a token that ends a text."""

    vocab_size: int
    ends: tuple[int, ...] = ()
