"""The benchmarks scored by other means: prompts written out, each sequence read alone, all its logits.

Nothing of lm-evaluation-harness and nothing of hmoe.evaluate is used.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hmoe.data.tokenizer import Tokenizer
from hmoe.model.transformer import Transformer

Doc = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """(context, answer) pairs, the lengths by which acc_norm divides, and which pair is right."""

    pairs: list[tuple[str, str]]
    right: int

    @property
    def sizes(self) -> list[int]:
        return [len(answer) - 1 for _, answer in self.pairs]  # without the space before it


def choices(context: str, answers: list[str], right: int) -> Question:
    return Question([(context, f" {answer}") for answer in answers], right)


def _piqa(doc: Doc) -> Question:
    return choices(f"Question: {doc['goal']}\nAnswer:", [doc["sol1"], doc["sol2"]], doc["label"])


def _hellaswag(doc: Doc) -> Question:
    def clean(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    context = clean(f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}")
    return choices(context, [clean(ending) for ending in doc["endings"]], int(doc["label"]))


def _boolq(doc: Doc) -> Question:
    return choices(f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:", ["no", "yes"], doc["label"])


def _arc(doc: Doc) -> Question:
    right = doc["choices"]["label"].index(doc["answerKey"])
    return choices(f"Question: {doc['question']}\nAnswer:", doc["choices"]["text"], right)


def _winogrande(doc: Doc) -> Question:
    before, after = doc["sentence"].split("_", 1)
    pairs = [(before + doc[option], f" {after.strip()}") for option in ("option1", "option2")]
    return Question(pairs, int(doc["answer"]) - 1)


def _siqa(doc: Doc) -> Question:
    answers = [doc[f"answer{letter}"] for letter in "ABC"]
    return choices(f"Q: {doc['context']} {doc['question']}\nA:", answers, int(doc["label"]) - 1)


PROMPTS: dict[str, tuple[str, Callable[[Doc], Question]]] = {
    "piqa": ("validation", _piqa), "hellaswag": ("validation", _hellaswag), "boolq": ("validation", _boolq),
    "arc_easy": ("test", _arc), "winogrande": ("validation", _winogrande), "social_iqa": ("validation", _siqa),
    "arc_challenge": ("test", _arc),
}  # fmt: skip


def questions(folder: Path, name: str, limit: int | None = None) -> list[Question]:
    split, make = PROMPTS[name]
    lines = (folder / f"{name}.{split}.jsonl").read_text().splitlines()[:limit]
    return [make(json.loads(line)) for line in lines]


@torch.no_grad()
def log_likelihood(
    model: Transformer, tokenizer: Tokenizer, context: str, answer: str, length: int
) -> tuple[float, bool]:
    """Of the answer's tokens: nats, and whether each is the most probable; the last length + 1 tokens are read."""
    whole, before = tokenizer.encode([context + answer])[0], tokenizer.encode([context])[0]
    scored = len(whole) - len(before)
    kept = whole[-(length + 1) :]
    logits, _ = model(torch.tensor([kept[:-1]]))
    rows = logits[0].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[-scored:]
    targets = torch.tensor(kept[-scored:])
    return float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(1) == targets).all())


def accuracies(
    model: Transformer, tokenizer: Tokenizer, asked: list[Question], length: int
) -> tuple[float, float, list[float]]:
    """(acc, acc_norm, every log-likelihood in order)."""
    plain = normed = 0
    found: list[float] = []
    for question in asked:
        scores = [log_likelihood(model, tokenizer, *pair, length)[0] for pair in question.pairs]
        found += scores
        per_letter = [score / size for score, size in zip(scores, question.sizes, strict=True)]
        plain += scores.index(max(scores)) == question.right
        normed += per_letter.index(max(per_letter)) == question.right
    return plain / len(asked), normed / len(asked), found
