"""How a fine-tuned model is scored: by its answers to questions, or by its perplexity on a text."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.features import cut_source_windows, cut_text_blocks
from hmoe.adapt.finetune.settings import FinetuneSettings
from hmoe.adapt.finetune.tasks import FinetuneTask


class Scorer(Protocol):
    """Something that scores a model, and tells which of two scores is better."""

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the scores of a model by name."""

    def quality(self, row: dict[str, float]) -> float:
        """Return one number for the scores of a model, which is larger for a better model."""


class AnswerScorer:
    """Score of the answers that a model generates.

    Of the answers to a question's several windows the one of the largest probability counts.

    Attributes:
        windows: (index of the example, its tokens) for all windows.
    """

    def __init__(
        self, task: FinetuneTask, examples: Sequence[TaskExample], tokenizer: Any, settings: FinetuneSettings
    ) -> None:
        self.task, self.examples, self.tokenizer, self.settings = task, examples, tokenizer, settings
        self.windows = [
            (index, window)
            for index, example in enumerate(examples)
            for window in cut_source_windows(example, tokenizer, settings)
        ]

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the task's scores of a model's answers."""
        best = [(-math.inf, "")] * len(self.examples)
        for index, answer in self._generate_answers(model):
            best[index] = max(best[index], answer)
        assert self.task.score is not None
        return self.task.score([text for _, text in best], self.examples)

    def quality(self, row: dict[str, float]) -> float:
        """Return the task's own score, which is the first."""
        return next(value for name, value in row.items() if name != "epoch")

    def _generate_answers(self, model: Any) -> Iterator[tuple[int, tuple[float, str]]]:
        """Yield (index of the example, (log-probability, text)) for every window, in any order."""
        settings = self.settings
        # By length, so that little of a batch is padding.
        by_length = sorted(self.windows, key=lambda indexed: len(indexed[1]["input_ids"]))
        for start in range(0, len(by_length), settings.batch):
            part = by_length[start : start + settings.batch]
            batch = self.tokenizer.pad([window for _, window in part], return_tensors="pt").to(model.device)
            generation = model.generate(
                **batch, max_length=settings.target_length, min_length=settings.min_length, num_beams=settings.beams,
                no_repeat_ngram_size=settings.no_repeat_ngram, do_sample=False, return_dict_in_generate=True,
                output_scores=True,
            )  # fmt: skip
            texts = self.tokenizer.batch_decode(generation.sequences, skip_special_tokens=True)
            for (index, _), text, log_prob in zip(
                part, texts, sum_generated_log_probs(model, generation), strict=True
            ):
                yield index, (log_prob, text.strip())


def sum_generated_log_probs(model: Any, generation: Any) -> list[float]:
    """Return the log-probability of each generated text, in nats; for beam search the score of the beam.

    Args:
        model: that generated.
        generation: what `generate` returned, with scores.
    """
    if getattr(generation, "sequences_scores", None) is not None:
        beam_scores: list[float] = generation.sequences_scores.tolist()
        return beam_scores
    token_log_probs = model.compute_transition_scores(
        generation.sequences, generation.scores, normalize_logits=True
    )
    # A text that ended before the longest one of its batch is filled up with padding, which is not part of
    # it.
    padding = generation.sequences[:, -token_log_probs.shape[1] :] == model.generation_config.pad_token_id
    text_log_probs: list[float] = token_log_probs.masked_fill(padding, 0).sum(1).tolist()
    return text_log_probs


class PerplexityScorer:
    """Score of a language model: its perplexity on the validation text, cut into blocks."""

    def __init__(self, examples: Sequence[TaskExample], tokenizer: Any, settings: FinetuneSettings) -> None:
        self.blocks = cut_text_blocks(examples, tokenizer, settings)

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the perplexity per token, from the mean loss over blocks."""
        losses = [
            model(**{name: ids[None].to(model.device) for name, ids in block.items()}).loss
            for block in self.blocks
        ]
        return {"perplexity": float(torch.stack(losses).double().mean().exp())}

    def quality(self, row: dict[str, float]) -> float:
        """Return the negative perplexity: less is better."""
        return -row["perplexity"]
