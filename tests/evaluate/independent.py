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


def _cb(doc: Doc) -> Question:
    text = f"{doc['premise']}\nQuestion: {doc['hypothesis']}. True, False, or Neither?\nAnswer:"
    return choices(text, ["True", "False", "Neither"], doc["label"])


def _copa(doc: Doc) -> Question:
    link = "because" if doc["question"] == "cause" else "therefore"
    answers = [
        f" {doc[name][0].lower()}{doc[name][1:]}" for name in ("choice1", "choice2")
    ]  # after two spaces
    return choices(f"{doc['premise'][:-1]} {link}", answers, doc["label"])


def _rte(doc: Doc) -> Question:
    text = f"{doc['premise']}\nQuestion: {doc['hypothesis']} True or False?\nAnswer:"
    return choices(text, ["True", "False"], doc["label"])


def _mmlu(doc: Doc) -> Question:
    about = doc["subject"].replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", doc["choices"], strict=True))
    return choices(f"{head}{doc['question']}\n{listed}\nAnswer:", list("ABCD"), doc["answer"])


def _wic(doc: Doc) -> Question:
    word = doc["sentence1"][doc["start1"] : doc["end1"]]
    text = f"Sentence 1: {doc['sentence1']}\nSentence 2: {doc['sentence2']}\n"
    question = f"Question: Is the word '{word}' used in the same way in the two sentences above?\nAnswer:"
    return choices(text + question, ["no", "yes"], doc["label"])


def _multirc(doc: Doc) -> Question:
    text = f"{doc['paragraph']}\nQuestion: {doc['question']}\nAnswer:"
    return choices(
        text, [f"{doc['answer']}\nIs the answer correct? {word}" for word in ("yes", "no")], doc["label"]
    )


def _logiqa(doc: Doc) -> Question:
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", doc["options"], strict=True))
    text = f"Passage: {doc['context']}\nQuestion: {doc['question']}\nChoices:\n{listed}\nAnswer:"
    return choices(text, doc["options"], "abcd".index(doc["label"]))


PROMPTS: dict[str, tuple[str, Callable[[Doc], Question]]] = {
    "piqa": ("validation", _piqa), "hellaswag": ("validation", _hellaswag), "boolq": ("validation", _boolq),
    "arc_easy": ("test", _arc), "winogrande": ("validation", _winogrande), "social_iqa": ("validation", _siqa),
    "arc_challenge": ("test", _arc), "cb": ("validation", _cb), "copa": ("validation", _copa),
    "sglue_rte": ("validation", _rte), "wic": ("validation", _wic), "multirc": ("validation", _multirc),
    "logiqa": ("test", _logiqa),
}  # fmt: skip


def questions(folder: Path, name: str, limit: int | None = None) -> list[Question]:
    split, make = ("test", _mmlu) if name.startswith("mmlu_") else PROMPTS[name]
    subject = name.removeprefix("mmlu_") if name.startswith("mmlu_") else None
    docs = map(json.loads, (folder / f"{'mmlu' if subject else name}.{split}.jsonl").read_text().splitlines())
    return [make(doc) for doc in docs if subject in (None, doc.get("subject"))][:limit]


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
    log_likelihoods: list[float] = []
    for question in asked:
        scores = [log_likelihood(model, tokenizer, *pair, length)[0] for pair in question.pairs]
        log_likelihoods += scores
        per_letter = [score / size for score, size in zip(scores, question.sizes, strict=True)]
        plain += scores.index(max(scores)) == question.right
        normed += per_letter.index(max(per_letter)) == question.right
    return plain / len(asked), normed / len(asked), log_likelihoods
