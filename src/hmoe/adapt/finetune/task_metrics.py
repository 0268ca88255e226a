"""What the tasks are scored by, in percent, from texts.

The measures are those of scikit-learn, SciPy and rouge-score. An answer that is no class counts as wrong, for
F1 as the opposite of the right one, as HyperMoE's scripts do.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from hmoe.adapt.finetune.example import TaskExample
from hmoe.errors import make_missing_extra_error

try:
    from rouge_score import rouge_scorer
    from scipy import stats
    from sklearn import metrics
except ImportError:
    raise make_missing_extra_error("fine-tuning recipes", "finetune") from None

    pass

Score = Callable[[Sequence[str], Sequence[TaskExample]], dict[str, float]]


def measure_accuracy(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return the share of answers that are the target."""
    right = [answer == example.targets[0] for answer, example in zip(predictions, examples, strict=True)]
    return {"accuracy": 100 * sum(right) / len(right)}


def measure_matthews(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return Matthews' correlation of binary answers with their targets (CoLA)."""
    return {
        "matthews": 100 * float(metrics.matthews_corrcoef(_targets(examples), _binary(predictions, examples)))
    }


def measure_f1_and_accuracy(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return the F1 of class 1, and the accuracy (MRPC, QQP)."""
    return {"f1": _f1(predictions, examples), **measure_accuracy(predictions, examples)}


def measure_macro_f1_and_accuracy(
    predictions: Sequence[str], examples: Sequence[TaskExample]
) -> dict[str, float]:
    """Return the mean F1 over the classes that occur among the targets, and the accuracy (CB)."""
    targets = _targets(examples)
    macro = metrics.f1_score(
        targets, predictions, labels=sorted(set(targets)), average="macro", zero_division=0
    )
    return {"f1": 100 * float(macro), **measure_accuracy(predictions, examples)}


def measure_correlations(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation of predicted and true numbers (STS-B).

    Both are 0 if one side is constant. An answer that is no number counts as -1, which no true number is.
    """
    predicted, true = (
        [_parse_number(text) for text in predictions],
        [_parse_number(text) for text in _targets(examples)],
    )
    if len(set(predicted)) < 2 or len(set(true)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    pearson, spearman = stats.pearsonr(true, predicted)[0], stats.spearmanr(true, predicted)[0]
    return {"pearson": 100 * float(pearson), "spearman": 100 * float(spearman)}


def measure_grouped_answers(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return the F1 over all answers, and the share of questions whose answers are all right (MultiRC)."""
    right: dict[str, bool] = {}
    for answer, example in zip(predictions, examples, strict=True):
        right[example.group] = right.get(example.group, True) and answer == example.targets[0]
    return {"f1": _f1(predictions, examples), "exact_match": 100 * sum(right.values()) / len(right)}


def measure_squad_answers(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return the F1 of words and the exact matches, with the best target of each question (SQuAD, ReCoRD)."""
    pairs = list(zip(predictions, examples, strict=True))
    f1 = [max(_f1_of_words(answer, target) for target in example.targets) for answer, example in pairs]
    exact = [
        any(_normalize(answer) == _normalize(target) for target in example.targets)
        for answer, example in pairs
    ]
    return {"f1": 100 * sum(f1) / len(pairs), "exact_match": 100 * sum(exact) / len(pairs)}


def measure_rouge(predictions: Sequence[str], examples: Sequence[TaskExample]) -> dict[str, float]:
    """Return ROUGE-2, ROUGE-1 and ROUGE-L as F1, with stemming (CNN/DailyMail)."""
    kinds = ["rouge2", "rouge1", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    scores = [
        scorer.score(target, answer) for answer, target in zip(predictions, _targets(examples), strict=True)
    ]
    return {kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}


def _targets(examples: Sequence[TaskExample]) -> list[str]:
    return [example.targets[0] for example in examples]


def _binary(predictions: Sequence[str], examples: Sequence[TaskExample]) -> list[str]:
    """Return the answers, of which those that are neither 0 nor 1 become the opposite of the target."""
    opposite = {"0": "1", "1": "0"}
    pairs = zip(predictions, _targets(examples), strict=True)
    return [answer if answer in opposite else opposite[target] for answer, target in pairs]


def _f1(predictions: Sequence[str], examples: Sequence[TaskExample]) -> float:
    return 100 * float(
        metrics.f1_score(_targets(examples), _binary(predictions, examples), pos_label="1", zero_division=0)
    )


def _parse_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def _normalize(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, as SQuAD's own script does."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1_of_words(answer: str, target: str) -> float:
    answered, wanted = _normalize(answer).split(), _normalize(target).split()
    if not answered or not wanted:
        return float(answered == wanted)  # no answer is right where there is none
    common = sum((Counter(answered) & Counter(wanted)).values())
    return 2 * common / (len(answered) + len(wanted))
