"""One pass of the model over parts of many sequences, and the token that each of them draws from it."""

import logging
from collections.abc import Sequence as Series
from typing import Protocol

import torch

from hmoe.data.tokenizer import Decoding
from hmoe.model.trace import count_activated
from hmoe.model.transformer import Transformer
from hmoe.serve.engine.sampling import adjust_logits, draw_tokens, gather_logprobs
from hmoe.serve.engine.sequence import RunningSequence
from hmoe.serve.engine.slots import KeyValueSlots, SequencePart, StepContext
from hmoe.serve.engine.types import SequenceFailure, TokenLogprob

_LOG = logging.getLogger("hmoe.serve")
_RAISED = SequenceFailure(500, "model_error", "the model failed on this request; others are not affected")
_NOT_FINITE = SequenceFailure(500, "not_finite", "the model's output for this request is NaN or infinite")

# (T, D), and per token the hidden units and experts activated
Hidden = tuple[torch.Tensor, list[float], list[float]]


class EngineTokenizer(Decoding, Protocol):
    """Decodes tokens, and knows which of them end a text: what the engine needs of a tokenizer.

    Attributes:
        vocab_size: ids that it can decode; a model's vocabulary may be padded beyond them.
        ends: tokens that end a text.
    """

    vocab_size: int
    ends: tuple[int, ...]


def find_top_p_threshold(model: Transformer) -> float | None:
    """Return the threshold of the model's top-p router, or None."""
    moe = model.config.moe
    return None if moe is None else moe.router.threshold


class BatchRunner:
    """Runs a model over its slots, a step at a time.

    Attributes:
        top_p: threshold of the model's top-p router; None: it has none.
    """

    def __init__(self, model: Transformer, tokenizer: EngineTokenizer, slots: KeyValueSlots) -> None:
        self._model, self._tokenizer, self._slots = model, tokenizer, slots
        moe = model.config.moe
        self.top_p = find_top_p_threshold(model)
        self._widths = moe.routed_widths if moe else ()

    def run(self, parts: Series[SequencePart], sequences: Series[RunningSequence], decoding: int) -> None:
        """Run the parts of the sequences, of which the first `decoding` are one token each of slots 0, 1, ...

        If the model raises, every part is run alone, and only those that raise again end their sequence: a
        request that the model cannot bear must not end the others. Running a part again is safe, as it writes
        the same keys and values.
        """
        try:
            hidden = self._hidden(parts, decoding)
        except Exception as error:
            _LOG.warning("the model raised on %d sequences: %r", len(parts), error)
            if len(parts) == 1 and not decoding:  # it was alone already
                sequences[0].fail(_RAISED)
                return
            for part, sequence in zip(parts, sequences, strict=True):
                self.run([part], [sequence], 0)  # as a chunk, since its slot is not the first
            return
        self._take(parts, sequences, hidden)

    def _hidden(self, parts: Series[SequencePart], decoding: int) -> Hidden:
        asked = any(part.top_p is not None for part in parts)
        step = StepContext(self._slots, parts, decoding, self.top_p if asked else None)
        x_BLD, routings = self._model.hidden(step.tokens_BL, step)
        units_T, experts_T = count_activated(routings, self._widths, x_BLD.shape[1])
        return x_BLD[0], units_T.tolist(), experts_T.tolist()

    def _take(self, parts: Series[SequencePart], sequences: Series[RunningSequence], hidden: Hidden) -> None:
        """Give every sequence its rows; those whose prompt is read draw a token from the last of them."""
        x_TD, units, experts = hidden
        # NaN or infinity anywhere in a row makes its sum not finite, so one number per token is copied.
        finite = torch.isfinite(x_TD.sum(1, dtype=torch.float32)).tolist()
        rows: list[int] = []
        drawing: list[RunningSequence] = []
        begin = 0
        for part, sequence in zip(parts, sequences, strict=True):
            end = begin + len(part.tokens)
            if not all(finite[begin:end]):
                sequence.fail(_NOT_FINITE)
            else:
                # Before `advance`, which may make it decode: these rows are still of the prompt.
                if sequence.task.echo and not sequence.decoding:
                    self._score_prompt(sequence, part, x_TD[begin:end])
                sequence.advance(end - begin, sum(units[begin:end]), sum(experts[begin:end]))
                if sequence.decoding and sequence.task.max_tokens:
                    rows.append(end - 1)
                    drawing.append(sequence)
                elif sequence.decoding:
                    sequence.finish("length")
            begin = end
        if drawing:
            # Without prompts in the step, which is most of them, no row is copied.
            self._draw(x_TD if len(rows) == len(x_TD) else x_TD[rows], drawing)

    def _draw(self, x_BD: torch.Tensor, sequences: list[RunningSequence]) -> None:
        """Draw a token for every sequence from the row of its newest token."""
        logits_BV = self._logits(x_BD)
        finite = torch.isfinite(logits_BV.amax(1)).tolist()
        scored = [row for row, sequence in enumerate(sequences) if sequence.task.logprobs is not None]
        # A copy, because biases are added in place and log-probabilities are those of the model without them.
        raw_TV = logits_BV[scored] if scored else None
        # A model's vocabulary may be padded; the tokenizer could not decode what is drawn from there.
        logits_BV = logits_BV[:, : self._tokenizer.vocab_size]
        for logits_V, sequence in zip(logits_BV, sequences, strict=True):
            adjust_logits(logits_V, sequence.task, sequence.counts)
        uniforms = [sequence.draw_uniform() for sequence in sequences]
        tokens = draw_tokens(logits_BV, [sequence.task.sampling for sequence in sequences], uniforms)
        entries: dict[int, TokenLogprob] = {}
        if raw_TV is not None:
            num_tops = [sequences[row].task.logprobs or 0 for row in scored]
            entries = dict(
                zip(scored, _entries(raw_TV, [tokens[row] for row in scored], num_tops), strict=True)
            )
        for row, sequence in enumerate(sequences):
            if finite[row]:
                sequence.accept(tokens[row], entries.get(row), self._tokenizer.ends)
            else:
                sequence.fail(_NOT_FINITE)

    def _score_prompt(self, sequence: RunningSequence, part: SequencePart, x_TD: torch.Tensor) -> None:
        """Find log-probabilities of the prompt tokens that follow those of the part."""
        # The row of a token predicts the next one, so the prompt's last row has no target: from it a token is
        # drawn.
        targets = sequence.task.prompt[part.start + 1 : part.start + len(part.tokens) + 1]
        if targets:
            logits_TV = self._logits(x_TD[: len(targets)])
            num_tops = [sequence.task.logprobs or 0] * len(targets)
            sequence.add_prompt_entries(_entries(logits_TV, targets, num_tops))

    def _logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        logits_TV = torch.nn.functional.linear(x_TD, self._model.head_weight)
        # bfloat16 has too few digits for log-probabilities; float64 models stay as they are.
        return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))


def _entries(logits_TV: torch.Tensor, targets: Series[int], num_tops: Series[int]) -> list[TokenLogprob]:
    # The most that any row wants is computed for all, and each keeps what it asked for.
    columns = zip(targets, num_tops, *gather_logprobs(logits_TV, targets, max(num_tops)), strict=True)
    return [
        TokenLogprob(target, logprob, tuple(zip(ids[:num_top], logprobs[:num_top], strict=True)))
        for target, num_top, logprob, ids, logprobs in columns
    ]
