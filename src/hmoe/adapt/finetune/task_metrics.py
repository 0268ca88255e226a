"""What the tasks are scored by, in percent, from texts; the measures themselves are scikit-learn's, SciPy's and rouge-score's.

An answer that is no class counts as wrong, for F1 as the opposite of the right one, as HyperMoE's scripts do.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hmoe.errors import missing_extra

try:
    from rouge_score import rouge_scorer
    from scipy import stats
    from sklearn import metrics
except ImportError:
    raise missing_extra("fine-tuning recipes", "finetune") from None

if TYPE_CHECKING:
    from hmoe.adapt.finetune.tasks import Example

Score = Callable[[Sequence[str], "Sequence[Example]"], dict[str, float]]


def accuracy(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """Share of answers that are the target."""
    right = [answer == example.targets[0] for answer, example in zip(predictions, examples, strict=True)]
    return {"accuracy": 100 * sum(right) / len(right)}


def matthews(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """Matthews correlation (CoLA)."""
    return {"matthews": 100 * float(metrics.matthews_corrcoef(_targets(examples), _binary(predictions, examples)))}


def f1_and_accuracy(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """F1 of class 1, and accuracy (MRPC, QQP)."""
    return {"f1": _f1(predictions, examples), **accuracy(predictions, examples)}


def macro_f1_and_accuracy(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """Mean F1 over the classes that occur, and accuracy (CB)."""
    targets = _targets(examples)
    macro = metrics.f1_score(targets, predictions, labels=sorted(set(targets)), average="macro", zero_division=0)
    return {"f1": 100 * float(macro), **accuracy(predictions, examples)}


def correlations(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """Pearson's and Spearman's correlation of numbers (STS-B); 0 where one side is constant, -1 for what is no number."""
    guessed, true = [_number(text) for text in predictions], [_number(text) for text in _targets(examples)]
    if len(set(guessed)) < 2 or len(set(true)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    found = stats.pearsonr(true, guessed)[0], stats.spearmanr(true, guessed)[0]
    return {"pearson": 100 * float(found[0]), "spearman": 100 * float(found[1])}


def grouped(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """F1 over all answers, and share of questions whose answers are all right (MultiRC)."""
    right: dict[str, bool] = {}
    for answer, example in zip(predictions, examples, strict=True):
        right[example.group] = right.get(example.group, True) and answer == example.targets[0]
    return {"f1": _f1(predictions, examples), "exact_match": 100 * sum(right.values()) / len(right)}


def squad(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """F1 of words and exact match, the best over the right answers (SQuAD, ReCoRD)."""
    pairs = list(zip(predictions, examples, strict=True))
    overlap = [max(_overlap(answer, target) for target in example.targets) for answer, example in pairs]
    exact = [any(_normal(answer) == _normal(target) for target in example.targets) for answer, example in pairs]
    return {"f1": 100 * sum(overlap) / len(pairs), "exact_match": 100 * sum(exact) / len(pairs)}


def rouge(predictions: Sequence[str], examples: "Sequence[Example]") -> dict[str, float]:
    """ROUGE-2, -1 and -L, with stemming (CNN/DailyMail)."""
    kinds = ["rouge2", "rouge1", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    found = [scorer.score(example.targets[0], answer) for answer, example in zip(predictions, examples, strict=True)]
    return {kind: 100 * sum(one[kind].fmeasure for one in found) / len(found) for kind in kinds}


def _targets(examples: "Sequence[Example]") -> list[str]:
    return [example.targets[0] for example in examples]


def _binary(predictions: Sequence[str], examples: "Sequence[Example]") -> list[str]:
    """What is neither 0 nor 1 becomes the opposite of the target."""
    opposite = {"0": "1", "1": "0"}
    pairs = zip(predictions, _targets(examples), strict=True)
    return [answer if answer in opposite else opposite[target] for answer, target in pairs]


def _f1(predictions: Sequence[str], examples: "Sequence[Example]") -> float:
    return 100 * float(
        metrics.f1_score(_targets(examples), _binary(predictions, examples), pos_label="1", zero_division=0)
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def _normal(text: str) -> str:
    """As SQuAD's own script: lower case, without punctuation and articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(answer: str, target: str) -> float:
    found, wanted = _normal(answer).split(), _normal(target).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))
