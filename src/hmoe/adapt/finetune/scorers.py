"""Examples -> tokens to train on; a model -> its answers, and their score."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from hmoe.adapt.finetune.tasks import Example, Settings, Task
from hmoe.errors import ConfigError


class Quality(Protocol):
    """Scores a model; `quality` tells which scores are better."""

    def __call__(self, model: Any) -> dict[str, float]:
        """Numbers by name."""

    def quality(self, row: dict[str, float]) -> float:
        """Of such numbers; more is better."""


def sequences(task: Task, examples: Sequence[Example], tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """Sources and targets as tokens, to be trained on."""
    rows = []
    for example in examples:
        for target in example.targets if task.all_targets else example.targets[:1]:
            labels = tokenizer(text_target=target, max_length=settings.target_length, truncation=True)["input_ids"]
            rows.append({**_cut(example.source, tokenizer, settings), "labels": labels})
    return rows


def _cut(source: str, tokenizer: Any, settings: Settings) -> dict[str, Any]:
    read = tokenizer(source, max_length=settings.source_length, truncation=True)
    return {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}


def windows(example: Example, tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """One, or, with a stride, as many as a long source needs to be read to its end; each begins with the example's head.

    Windows share `stride` tokens, or half of what fits beside the head, if the stride does not fit. Of a head that leaves no room
    the first half of the source length is kept (`count_cut_heads`).
    """
    whole = tokenizer(example.source)["input_ids"]
    if settings.stride is None or len(whole) <= settings.source_length:
        return [_cut(example.source, tokenizer, settings)]
    end = tokenizer("")["input_ids"]  # what every text ends with
    head = _plain_tokens(example.head, tokenizer)
    body = _plain_tokens(example.source[len(example.head) :], tokenizer)
    if not _has_room(head, end, settings):
        head = head[: max(0, settings.source_length // 2 - len(end))]
    room = max(1, settings.source_length - len(head) - len(end))
    shared = settings.stride if settings.stride < room else room // 2
    starts = range(0, max(1, len(body) - shared), room - shared)
    rows = [[*head, *body[start : start + room], *end] for start in starts]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]


def _plain_tokens(text: str, tokenizer: Any) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _has_room(head: Sequence[int], end: Sequence[int], settings: Settings) -> bool:
    return len(head) + len(end) < settings.source_length


def count_cut_heads(examples: Sequence[Example], tokenizer: Any, settings: Settings) -> int:
    """Questions so long that windows of `source_length` tokens have no room for a token of the context beside them."""
    if settings.stride is None:
        return 0
    end = tokenizer("")["input_ids"]
    heads = {example.head for example in examples if example.head}
    return sum(not _has_room(_plain_tokens(head, tokenizer), end, settings) for head in heads)


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


def blocks(examples: Sequence[Example], tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """The text as one stream of tokens, cut into blocks; the rest is left out."""
    ids = [token for read in tokenizer([example.source for example in examples])["input_ids"] for token in read]
    length = settings.source_length
    blocks = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not blocks:
        raise ConfigError(f"{len(ids)} tokens of text do not fill one block of {length}; lower --source-length")
    return [{"input_ids": torch.tensor(block), "labels": torch.tensor(block)} for block in blocks]


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
