"""Benchmark tasks on small models: scores, activated experts and options."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe import ConfigError, NonFiniteError
from hmoe.config.counts import count_activated_parameters
from hmoe.data.benchmark_splits import PAPER_TASKS
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.evaluate import language_model
from hmoe.evaluate.harness import (
    EvaluationOptions,
    ModelInfo,
    evaluate_tasks,
    fingerprint_model,
    read_training_record,
)
from hmoe.model.transformer import Transformer
from tests.evaluate.helpers import LENGTH, ROUTERS, model, words
from tests.evaluate.independent import accuracies, questions

NAMES = [task.name for task in PAPER_TASKS]
Result = dict[str, Any]


@pytest.mark.parametrize("name", NAMES)
def test_accuracies_are_those_of_an_independent_scorer(
    name: str, whole: Result, moe_model: Transformer, benchmarks: Path
) -> None:
    asked = questions(benchmarks, name)
    record = whole["tasks"][name]
    plain, normed, _ = accuracies(moe_model, words(), asked, LENGTH)
    assert record["metrics"]["acc"] == pytest.approx(plain)
    assert record["metrics"].get("acc_norm", normed) == pytest.approx(normed)
    assert ("acc_norm" in record["metrics"]) == (name in ("piqa", "hellaswag", "arc_easy", "arc_challenge"))
    n = len(asked)
    assert record["metrics"]["acc_stderr"] == pytest.approx(math.sqrt(plain * (1 - plain) / (n - 1)))
    assert (record["documents"], record["requests"]) == (n, sum(len(question.pairs) for question in asked))
    assert record["chance"] == pytest.approx(sum(1 / len(question.pairs) for question in asked) / n)
    majority = max(Counter(question.right for question in asked).values()) / n if name == "boolq" else None
    assert record["majority_class"] == majority


def test_accuracies_are_not_all_the_same(whole: Result) -> None:
    """Else the test above could not fail."""
    assert len({record["metrics"]["acc"] for record in whole["tasks"].values()}) > 3


@pytest.mark.parametrize(
    ("moe", "ratio"),
    [
        ({"widths": [8, 12, 20, 24], "router": {"name": "top_p", "p": 1.0}}, 1.0),
        ({"widths": [16] * 4, "router": {"name": "top_k", "k": 1}}, 0.25),
    ],
    ids=["all experts", "one of four"],
)
def test_activated_ratios_where_they_are_known(moe: dict[str, Any], ratio: float, benchmarks: Path) -> None:
    moe_model = model(moe)
    result = evaluate_tasks(
        moe_model, words(), LENGTH, ["piqa", "arc_easy"], benchmarks, EvaluationOptions(limit=2)
    )
    for record in (result, *result["tasks"].values()):
        assert record["activated_ratio"] == ratio
        assert record["mean_activated_width"] == 64 * ratio
        assert record["activated_parameters"] == count_activated_parameters(moe_model.config, 64 * ratio)


def test_activated_units_are_those_of_the_tokens_read(
    whole: Result, moe_model: Transformer, benchmarks: Path
) -> None:
    """Of WinoGrande: what the two sentences share once, then each option and what follows."""
    widths = torch.tensor(ROUTERS["top_p"]["widths"])
    tokens, units = 0, 0.0
    for question in questions(benchmarks, "winogrande"):
        rows = [words().encode([context + answer])[0][:-1] for context, answer in question.pairs]
        shared = next(n for n, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
        for index, row in enumerate(rows):
            with torch.no_grad():
                _, routings = moe_model(torch.tensor([row]))
            counted = range(len(row)) if index == 0 else range(shared, len(row))
            tokens += len(counted)
            for routing in routings:
                kept = torch.isin(routing.token_N, torch.tensor(counted))
                units += float(widths[routing.expert_N[kept]].sum())
    record = whole["tasks"]["winogrande"]
    assert (record["tokens"], record["activated_units"]) == (tokens, units)
    assert record["activated_ratio"] == pytest.approx(units / tokens / 2 / 64)
    assert record["truncated_requests"] == 0


def test_limit_and_num_fewshot(
    moe_model: Transformer, benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain = language_model.LanguageModel.loglikelihood

    def watch(self: Any, requests: Any, **options: Any) -> Any:
        seen.extend(request.args[0] for request in requests)
        return plain(self, requests, **options)

    monkeypatch.setattr(language_model.LanguageModel, "loglikelihood", watch)
    evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=3))
    assert len(seen) == 6
    assert all(context.count("Question:") == 1 for context in seen)
    seen.clear()
    evaluate_tasks(moe_model, words(), 400, ["piqa"], benchmarks, EvaluationOptions(limit=2, num_fewshot=2))
    assert all(context.count("Question:") == 3 for context in seen)
    again = list(seen)
    seen.clear()
    evaluate_tasks(moe_model, words(), 400, ["piqa"], benchmarks, EvaluationOptions(limit=2, num_fewshot=2))
    assert seen == again  # the examples are drawn with a fixed seed


@pytest.mark.parametrize("options", [{"limit": 0}, {"num_fewshot": -1}, {"batch_tokens": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        EvaluationOptions(**options)


def test_every_weight_and_the_tokenizer_are_in_the_fingerprint() -> None:
    moe_model = model(ROUTERS["top_k"])
    prints = {fingerprint_model(moe_model, words()), fingerprint_model(moe_model, ByteTokenizer())}
    for name, parameter in moe_model.named_parameters():
        with torch.no_grad():
            kept = parameter.flatten()[-1].clone()
            parameter.view(-1)[-1] += 1
            prints.add(fingerprint_model(moe_model, words()))
            parameter.view(-1)[-1] = kept
        assert name
    assert len(prints) == 2 + len(list(moe_model.parameters()))
    assert fingerprint_model(moe_model, words()) in prints


def test_errors_in_a_task_name_the_task(
    moe_model: Transformer, benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise NonFiniteError("the router's logits are NaN")

    monkeypatch.setattr(language_model, "score_candidates", refuse)
    with pytest.raises(NonFiniteError, match="hellaswag: the router's logits are NaN"):
        evaluate_tasks(moe_model, words(), LENGTH, ["hellaswag"], benchmarks)


def test_training_is_read_at_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    rows = [{"step": n, "tokens": 10 * n, "flops": 100 * n, "loss": 1.0} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_training_record(tmp_path, 2) == {"step": 2, "tokens": 20, "flops": 200}
    assert read_training_record(tmp_path, None) == {"step": 3, "tokens": 30, "flops": 300}
    assert read_training_record(tmp_path / "nowhere", 2) == {}


def test_what_is_known_of_the_training_stands_in_the_result(moe_model: Transformer, benchmarks: Path) -> None:
    about = ModelInfo("HMoE", {"step": 2, "tokens": 20, "flops": 200})
    result = evaluate_tasks(
        moe_model, words(), LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=2), about
    )
    assert (result["name"], result["training_step"], result["training_flops"]) == ("HMoE", 2, 200)
    assert (
        evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=2))[
            "training_flops"
        ]
        is None
    )
