"""Examples -> tokens to train on; a model -> its answers, and their score."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from hmoe.adapt.finetune.features import blocks, windows
from hmoe.adapt.finetune.settings import Settings
from hmoe.adapt.finetune.tasks import Example, Task


class Quality(Protocol):
    """Scores a model; `quality` tells which scores are better."""

    def __call__(self, model: Any) -> dict[str, float]:
        """Numbers by name."""

    def quality(self, row: dict[str, float]) -> float:
        """Of such numbers; more is better."""


class Answers:
    """Generates an answer to each question; of several windows' answers the one of the largest probability counts."""

    def __init__(self, task: Task, examples: Sequence[Example], tokenizer: Any, settings: Settings) -> None:
        self.task, self.examples, self.tokenizer, self.settings = task, examples, tokenizer, settings
        self.windows = [
            (number, window)
            for number, example in enumerate(examples)
            for window in windows(example, tokenizer, settings)
        ]

    def __call__(self, model: Any) -> dict[str, float]:
        """The task's scores."""
        best = [(-math.inf, "")] * len(self.examples)
        for number, found in self._generated(model):
            best[number] = max(best[number], found)
        assert self.task.score is not None
        return self.task.score([text for _, text in best], self.examples)

    def quality(self, row: dict[str, float]) -> float:
        """The task's own score, the first."""
        return next(value for name, value in row.items() if name != "epoch")

    def _generated(self, model: Any) -> Iterator[tuple[int, tuple[float, str]]]:
        settings = self.settings
        order = sorted(self.windows, key=lambda pair: len(pair[1]["input_ids"]))  # little padding
        for start in range(0, len(order), settings.batch):
            part = order[start : start + settings.batch]
            batch = self.tokenizer.pad([window for _, window in part], return_tensors="pt").to(model.device)
            made = model.generate(
                **batch, max_length=settings.target_length, min_length=settings.min_length, num_beams=settings.beams,
                no_repeat_ngram_size=settings.no_repeat_ngram, do_sample=False, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            texts = self.tokenizer.batch_decode(made.sequences, skip_special_tokens=True)
            for (number, _), text, log_prob in zip(part, texts, log_probs(model, made), strict=True):
                yield number, (log_prob, text.strip())


def log_probs(model: Any, made: Any) -> list[float]:
    """Of each generated text."""
    if getattr(made, "sequences_scores", None) is not None:
        found: list[float] = made.sequences_scores.tolist()
        return found
    each = model.compute_transition_scores(made.sequences, made.scores, normalize_logits=True)
    ended = made.sequences[:, -each.shape[1] :] == model.generation_config.pad_token_id
    summed: list[float] = each.masked_fill(ended, 0).sum(1).tolist()
    return summed


class Perplexity:
    """Of the validation text, in the same blocks."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any, settings: Settings) -> None:
        self.blocks = blocks(examples, tokenizer, settings)

    def __call__(self, model: Any) -> dict[str, float]:
        """Perplexity alone."""
        losses = [
            model(**{name: ids[None].to(model.device) for name, ids in block.items()}).loss for block in self.blocks
        ]
        return {"perplexity": float(torch.stack(losses).double().mean().exp())}

    def quality(self, row: dict[str, float]) -> float:
        """Less is better."""
        return -row["perplexity"]
