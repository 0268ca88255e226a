"""Every score, worked by hand."""

import pytest

from hmoe.adapt.finetune import task_metrics
from hmoe.adapt.finetune.example import TaskExample


def examples(*targets: str, groups: str = "") -> list[TaskExample]:
    return [TaskExample("", tuple(target.split("|")), groups[i : i + 1]) for i, target in enumerate(targets)]


def test_scores_by_hand() -> None:
    binary = examples("1", "0", "1", "1")
    assert task_metrics.measure_accuracy(["1", "0", "x", "0"], binary) == {"accuracy": 50}
    scores = task_metrics.measure_f1_and_accuracy(
        ["1", "1", "x", "0"], binary
    )  # x counts as 0: one true, one false positive, two missed
    assert scores == pytest.approx({"f1": 40, "accuracy": 25})
    assert task_metrics.measure_matthews(["1", "0", "1", "1"], binary) == {"matthews": 100}
    assert task_metrics.measure_matthews(["x", "x", "x", "x"], binary)["matthews"] == -100
    assert (
        task_metrics.measure_grouped_answers(
            ["1", "0", "1", "0"], examples("1", "0", "1", "1", groups="aabb")
        )["exact_match"]
        == 50
    )
    macro = task_metrics.measure_macro_f1_and_accuracy(
        ["0", "0", "2"], examples("0", "1", "2")
    )  # 2/3, 0 and 1
    assert macro == pytest.approx({"f1": 100 * 5 / 9, "accuracy": 200 / 3})
    assert task_metrics.measure_correlations(["1.0", "2.0", "4.0"], examples("0.0", "2.0", "3.0"))[
        "spearman"
    ] == pytest.approx(100)
    assert task_metrics.measure_correlations(["nan", "no"], examples("0.0", "2.0")) == {
        "pearson": 0,
        "spearman": 0,
    }
    words = task_metrics.measure_squad_answers(
        ["The big cat!", "a dog", ""], examples("big cat|cat", "big dog", "")
    )
    assert words == pytest.approx({"f1": 100 * (1 + 2 / 3 + 1) / 3, "exact_match": 200 / 3})
    rouge = task_metrics.measure_rouge(["the cat sat down"], examples("the cat sat up"))
    assert rouge == pytest.approx({"rouge1": 75, "rouge2": 200 / 3, "rougeL": 75})
