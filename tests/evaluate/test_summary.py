"""The result of an evaluation as a table like the paper's Table 1, and what is counted in it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hmoe.cli.results_table import format_results_table
from hmoe.config.counts import count_parameters
from hmoe.data.benchmark_splits import PAPER_SIX
from hmoe.evaluate.harness import EvaluationOptions, evaluate_tasks
from hmoe.model.transformer import Transformer
from tests.evaluate.helpers import LENGTH, model, words
from tests.evaluate.independent import questions

Result = dict[str, Any]


def test_the_average_is_of_the_six(whole: Result) -> None:
    six = [whole["tasks"][task.name] for task in PAPER_SIX]
    average = whole["average_of_six"]
    assert average["acc"] == pytest.approx(sum(record["metrics"]["acc"] for record in six) / 6)
    assert average["chance"] == pytest.approx(sum(record["chance"] for record in six) / 6)
    variance = sum(record["metrics"]["acc_stderr"] ** 2 for record in six) / 36
    assert average["acc_stderr"] == pytest.approx(math.sqrt(variance))


def test_a_dense_model_activates_all_of_itself(benchmarks: Path) -> None:
    dense_model = model(None)
    result = evaluate_tasks(dense_model, words(), LENGTH, ["piqa"], benchmarks)
    total = sum(count_parameters(dense_model.config).values())
    assert result["activated_parameters"] == result["total_parameters"] == total
    assert result["activated_ratio"] is None
    assert result["average_of_six"] is None
    assert "activated ratio" not in format_results_table(result, 200)


def test_the_table_is_laid_out_like_table_1(whole: Result) -> None:
    result = {**whole, "training_flops": 7e19, "training_tokens": 66e9, "name": "HMoE"}
    text = format_results_table(result, 200)
    lines = text.splitlines()
    columns = ["PIQA", "HellaSwag", "BoolQ", "ARC-Easy", "WinoGrande", "SIQA", "AVG", "ARC-Challenge"]
    assert lines[0].split() == ["Method", "Activated", "Parameters", *columns]
    assert len({len(line) for line in lines[:3]}) == 1
    accuracies = [f"{100 * whole['tasks'][task.name]['metrics']['acc']:.2f}" for task in PAPER_SIX]
    mean = f"{100 * whole['average_of_six']['acc']:.2f}"
    last = f"{100 * whole['tasks']['arc_challenge']['metrics']['acc']:.2f}"
    active = f"{whole['activated_parameters'] / 1e3:.2f}k"
    assert lines[1].split() == ["HMoE", active, *accuracies, mean, last]
    assert [line.split("  ")[0] for line in lines[2:6]] == [
        "standard error",
        "chance",
        "majority class",
        "activated ratio",
    ]
    assert lines[3].split()[1:] == ["50.00", "25.00", "50.00", "27.33", "50.00", "33.33", "39.28", "27.33"]
    assert lines[4].split()[2:] == [f"{100 * whole['tasks']['boolq']['majority_class']:.2f}"]
    assert "trained with 7.0e19 FLOPs on 66.00B tokens" in text
    assert f"precision float64, context_length {LENGTH}" in text
    assert max(map(len, format_results_table(result, 80).splitlines()[:15])) <= 80


def test_requests_that_lost_their_beginning_are_told(moe_model: Transformer, benchmarks: Path) -> None:
    result = evaluate_tasks(moe_model, words(), 40, ["boolq"], benchmarks, EvaluationOptions(limit=2))
    assert result["tasks"]["boolq"]["truncated_requests"] == 4
    assert "lost their beginning: boolq 4 of 4" in format_results_table(result, 200)


def test_one_document_has_no_standard_error(moe_model: Transformer, benchmarks: Path) -> None:
    result = evaluate_tasks(moe_model, words(), LENGTH, ["all"], benchmarks, EvaluationOptions(limit=1))
    json.dumps(result, allow_nan=False)
    assert result["average_of_six"]["acc_stderr"] is None
    assert [record["majority_class"] for record in result["tasks"].values()] == [None] * 7
    assert "standard error" not in format_results_table(result, 200)


def test_a_short_context_is_told(moe_model: Transformer, benchmarks: Path) -> None:
    result = evaluate_tasks(moe_model, words(), 8, ["hellaswag"], benchmarks, EvaluationOptions(limit=2))
    asked = [
        words().encode([answer])[0]
        for question in questions(benchmarks, "hellaswag", 2)
        for _, answer in question.pairs
    ]
    long = sum(len(ids) > 8 for ids in asked)
    assert 0 < long == result["tasks"]["hellaswag"]["windowed_requests"]
    assert f"longer than the context, read in windows: hellaswag {long} of 8" in format_results_table(
        result, 200
    )
