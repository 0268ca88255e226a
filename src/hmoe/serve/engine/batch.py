"""One pass of the model over parts of many sequences, and what each of them makes of it."""

import logging
from collections.abc import Sequence as Series
from typing import Protocol

import torch

from hmoe.data.tokenizer import Decoding
from hmoe.model.trace import count_activated
from hmoe.model.transformer import Transformer
from hmoe.serve.engine.types import Entry, Failure
from hmoe.serve.engine.sampling import adjust, draw, tell
from hmoe.serve.engine.sequence import Running
from hmoe.serve.engine.slots import Part, Slots, Step

_LOG = logging.getLogger("hmoe.serve")
_RAISED = Failure(500, "model_error", "the model failed on this request; others are not affected")
_NOT_FINITE = Failure(500, "not_finite", "the model's output for this request is NaN or infinite")

Hidden = tuple[torch.Tensor, list[float], list[float]]  # (T, D), and per token the hidden units and experts activated


class Vocabulary(Decoding, Protocol):
    """What the engine asks of a tokenizer."""

    vocab_size: int
    ends: tuple[int, ...]


def threshold(model: Transformer) -> float | None:
    """Of the model's top-p router, or None."""
    moe = model.config.moe
    return None if moe is None else moe.router.threshold


class Passes:
    """A model with its slots.

    Attributes:
        top_p: threshold of the model's top-p router; None: it has none.
    """

    def __init__(self, model: Transformer, tokenizer: Vocabulary, slots: Slots) -> None:
        self._model, self._tokenizer, self._slots = model, tokenizer, slots
        moe = model.config.moe
        self.top_p = threshold(model)
        self._widths = moe.routed_widths if moe else ()

    def run(self, parts: Series[Part], sequences: Series[Running], decoding: int) -> None:
        """Run the parts of the sequences, of which the first `decoding` are one token each of slots 0, 1, ...

        If the model raises, every part is run alone, and only those that raise again end their sequence.
        """
        try:
            hidden = self._hidden(parts, decoding)
        except Exception as error:
            _LOG.warning("the model raised on %d sequences: %r", len(parts), error)
            if len(parts) == 1 and not decoding:
                sequences[0].fail(_RAISED)
                return
            for part, sequence in zip(parts, sequences, strict=True):
                self.run([part], [sequence], 0)
            return
        self._take(parts, sequences, hidden)

    def _hidden(self, parts: Series[Part], decoding: int) -> Hidden:
        asked = any(part.top_p is not None for part in parts)
        step = Step(self._slots, parts, decoding, self.top_p if asked else None)
        x_BLD, routings = self._model.hidden(step.tokens_BL, step)
        units_T, experts_T = count_activated(routings, self._widths, x_BLD.shape[1])
        return x_BLD[0], units_T.tolist(), experts_T.tolist()

    def _take(self, parts: Series[Part], sequences: Series[Running], hidden: Hidden) -> None:
        """Every sequence takes its rows; those whose prompt is read draw a token from the last."""
        x_TD, units, experts = hidden
        finite = torch.isfinite(x_TD.sum(1, dtype=torch.float32)).tolist()
        rows: list[int] = []
        drawing: list[Running] = []
        begin = 0
        for part, sequence in zip(parts, sequences, strict=True):
            end = begin + len(part.tokens)
            if not all(finite[begin:end]):
                sequence.fail(_NOT_FINITE)
            else:
                if sequence.ask.echo and not sequence.decoding:
                    self._tell_prompt(sequence, part, x_TD[begin:end])
                sequence.ran(end - begin, sum(units[begin:end]), sum(experts[begin:end]))
                if sequence.decoding and sequence.ask.max_tokens:
                    rows.append(end - 1)
                    drawing.append(sequence)
                elif sequence.decoding:
                    sequence.finish("length")
            begin = end
        if drawing:
            self._draw(x_TD if len(rows) == len(x_TD) else x_TD[rows], drawing)

    def _draw(self, x_MD: torch.Tensor, sequences: list[Running]) -> None:
        logits_MV = self._logits(x_MD)
        finite = torch.isfinite(logits_MV.amax(1)).tolist()
        telling = [i for i, sequence in enumerate(sequences) if sequence.ask.logprobs is not None]
        raw_MV = logits_MV[telling] if telling else None  # a copy, before biases
        logits_MV = logits_MV[:, : self._tokenizer.vocab_size]
        for logits_V, sequence in zip(logits_MV, sequences, strict=True):
            adjust(logits_V, sequence.ask, sequence.counts)
        uniforms = [sequence.uniform() for sequence in sequences]
        tokens = draw(logits_MV, [sequence.ask.how for sequence in sequences], uniforms)
        told = {}
        if raw_MV is not None:
            entries = _entries(raw_MV, [tokens[i] for i in telling], [sequences[i].ask.logprobs or 0 for i in telling])
            told = dict(zip(telling, entries, strict=True))
        for i, sequence in enumerate(sequences):
            if finite[i]:
                sequence.accept(tokens[i], told.get(i), self._tokenizer.ends)
            else:
                sequence.fail(_NOT_FINITE)

    def _tell_prompt(self, sequence: Running, part: Part, x_LD: torch.Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow those of the part."""
        targets = sequence.ask.prompt[part.start + 1 : part.start + len(part.tokens) + 1]
        if targets:
            logits_MV = self._logits(x_LD[: len(targets)])
            sequence.tell_prompt(_entries(logits_MV, targets, [sequence.ask.logprobs or 0] * len(targets)))

    def _logits(self, x_MD: torch.Tensor) -> torch.Tensor:
        logits_MV = torch.nn.functional.linear(x_MD, self._model.head_weight)
        return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))


def _entries(logits_MV: torch.Tensor, targets: Series[int], num_tops: Series[int]) -> list[Entry]:
    numbers = zip(targets, num_tops, *tell(logits_MV, targets, max(num_tops)), strict=True)
    return [
        Entry(target, logprob, tuple(zip(ids[:num_top], logprobs[:num_top], strict=True)))
        for target, num_top, logprob, ids, logprobs in numbers
    ]
