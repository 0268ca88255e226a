"""Examples as tokens: sequences to train on, windows of a long source to answer, blocks of a text."""

from collections.abc import Sequence
from typing import Any

import torch

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.settings import FinetuneSettings
from hmoe.adapt.finetune.tasks import FinetuneTask
from hmoe.errors import ConfigError


def encode_training_sequences(
    task: FinetuneTask, examples: Sequence[TaskExample], tokenizer: Any, settings: FinetuneSettings
) -> list[dict[str, Any]]:
    """Return sources and targets as tokens to be trained on, one row for each example and target."""
    rows = []
    for example in examples:
        for target in example.targets if task.all_targets else example.targets[:1]:
            labels = tokenizer(text_target=target, max_length=settings.target_length, truncation=True)[
                "input_ids"
            ]
            rows.append({**_truncate(example.source, tokenizer, settings), "labels": labels})
    return rows


def cut_source_windows(
    example: TaskExample, tokenizer: Any, settings: FinetuneSettings
) -> list[dict[str, Any]]:
    """Cut an example's source into windows that together read it to its end.

    Each window begins with the example's head. Windows share `stride` tokens, or half of what fits beside the
    head, if the stride does not fit. Of a head that leaves no room the first half of the source length is
    kept (`count_cut_heads`). Without a stride there is one window, and the rest of the source is cut off.
    """
    ids = tokenizer(example.source)["input_ids"]
    if settings.stride is None or len(ids) <= settings.source_length:
        return [_truncate(example.source, tokenizer, settings)]
    end = tokenizer("")["input_ids"]  # what every text ends with
    head = _plain_tokens(example.head, tokenizer)
    body = _plain_tokens(example.source[len(example.head) :], tokenizer)
    if not _has_room(head, end, settings):
        head = head[: max(0, settings.source_length // 2 - len(end))]
    room = max(1, settings.source_length - len(head) - len(end))
    shared = settings.stride if settings.stride < room else room // 2
    # The last start leaves at least one token that the window before has not read.
    starts = range(0, max(1, len(body) - shared), room - shared)
    # window: [head][`room` tokens of the body][end]; its first `shared` body tokens end the window before
    rows = [[*head, *body[start : start + room], *end] for start in starts]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def cut_text_blocks(
    examples: Sequence[TaskExample], tokenizer: Any, settings: FinetuneSettings
) -> list[dict[str, Any]]:
    """Join the texts to one stream of tokens and cut it into blocks; the rest at its end is left out.

    Raises:
        ConfigError: if the text does not fill one block.
    """
    lines = tokenizer([example.source for example in examples])["input_ids"]
    ids = [token for line in lines for token in line]
    length = settings.source_length
    blocks = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not blocks:
        raise ConfigError(
            f"{len(ids)} tokens of text do not fill one block of {length}; lower source_length",
            argument="source_length",
        )
    return [{"input_ids": torch.tensor(block), "labels": torch.tensor(block)} for block in blocks]


def count_cut_heads(examples: Sequence[TaskExample], tokenizer: Any, settings: FinetuneSettings) -> int:
    """Count the distinct questions so long that a window has no room for a token of the context."""
    if settings.stride is None:
        return 0
    end = tokenizer("")["input_ids"]
    heads = {example.head for example in examples if example.head}
    return sum(not _has_room(_plain_tokens(head, tokenizer), end, settings) for head in heads)


def _truncate(source: str, tokenizer: Any, settings: FinetuneSettings) -> dict[str, Any]:
    encoding = tokenizer(source, max_length=settings.source_length, truncation=True)
    return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"]}


def _plain_tokens(text: str, tokenizer: Any) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _has_room(head: Sequence[int], end: Sequence[int], settings: FinetuneSettings) -> bool:
    return len(head) + len(end) < settings.source_length
