"""Table 3: sums are those of the evaluation, counts those of each sequence read alone, differences are planted."""

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from hmoe.analyze.questions import iterate_question_texts, list_task_tables, measure_questions
from hmoe.errors import ConfigError
from hmoe.evaluate.harness import EvaluationOptions, evaluate_task, evaluate_tasks
from hmoe.evaluate.language_model import LanguageModel
from hmoe.evaluate.read_counts import QuestionCounts
from hmoe.evaluate.tasks import TaskSelection, select_tasks
from hmoe.model.trace import trace
from hmoe.model.transformer import Transformer
from tests.evaluate.helpers import LENGTH, ROUTERS, folder, model, words

EVALUATED = {"arc_easy": "test", "winogrande": "validation", "boolq": "validation"}
TASKS = ["arc_easy", "arc_challenge", "winogrande", "boolq"]


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> TaskSelection:
    return select_tasks(TASKS, folder(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def moe_model() -> Transformer:
    return model(ROUTERS["top_p"])


def test_the_tables_sum_up_what_the_evaluation_counts(
    moe_model: Transformer, selection: TaskSelection
) -> None:
    tables = measure_questions(moe_model, words(), LENGTH, selection)
    records = evaluate_tasks(moe_model, words(), LENGTH, selection)["tasks"]
    assert [row["task"] for row in tables["tasks"]] == TASKS
    for row in tables["tasks"]:
        record = records[row["task"]]
        assert (row["questions"], row["tokens"]) == (record["documents"], record["tokens"])
        assert row["activated_ratio"] == pytest.approx(record["activated_ratio"], rel=1e-12)
        assert row["low"] < row["activated_ratio"] < row["high"]
        assert 1 <= row["experts_per_token"] <= 4
    ratios = {row["task"]: row["activated_ratio"] for row in tables["tasks"]}
    assert len(tables["task_differences"]) == 6
    for row in tables["task_differences"]:
        assert row["difference"] == pytest.approx(ratios[row["task"]] - ratios[row["other"]])
        assert row["p"] <= row["p_holm"] <= 1


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_each_question_counts_the_tokens_that_were_read_for_it(
    moe_model: Transformer, selection: TaskSelection, batch_tokens: int
) -> None:
    """Against each sequence traced alone; the shared beginning of a question's choices counts once."""
    lm = LanguageModel(moe_model, words(), LENGTH, batch_tokens)
    options = EvaluationOptions(limit=3)
    loaded = selection.load("arc_easy")
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=3)
    sequences = defaultdict(list)
    for task in loaded["tasks"].values():
        for request in task.instances:
            ((context, answer),) = lm._encode_pairs([request.args])
            sequences[request.task_name, request.doc_id].append([*context, *answer][:-1])
    evaluate_task(lm, selection, "arc_easy", options)
    assert lm.measured.questions == {
        question: count_alone(moe_model, candidates) for question, candidates in sequences.items()
    }
    counts = lm.measured.questions.values()
    assert sum(count.units for count in counts) == lm.measured.units
    assert sum(count.tokens for count in counts) == lm.measured.tokens


def count_alone(moe_model: Transformer, candidates: list[list[int]]) -> QuestionCounts:
    columns = list(zip(*candidates, strict=False))
    shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    counts = QuestionCounts()
    for place, tokens in enumerate(candidates):
        first = shared if place else 0
        traced = trace(moe_model, tokens)
        counts.tokens += len(tokens) - first
        counts.units += float(traced.width_ZT[:, first:].sum())
        counts.experts += int(traced.num_experts_ZT[:, first:].sum())
    return counts


def plant(rng: np.random.Generator, count: int, ratio: float) -> list[QuestionCounts]:
    """Questions of a model with 2 MoE layers of 64 hidden units, with a ratio of their own each."""
    tokens = rng.integers(20, 90, count)
    units = np.round(tokens * 2 * 64 * (ratio + 0.03 * rng.standard_normal(count)))
    return [QuestionCounts(int(n), float(u), int(3 * n)) for n, u in zip(tokens, units, strict=True)]


def test_a_planted_difference_is_seen_and_equal_tasks_differ_in_nothing() -> None:
    rng, spec = np.random.default_rng(0), model(ROUTERS["top_p"]).config
    tasks = {"easy": plant(rng, 80, 0.40), "hard": plant(rng, 60, 0.44), "also easy": plant(rng, 70, 0.40)}
    tables = list_task_tables(tasks, spec)
    rows = {(row["task"], row["other"]): row for row in tables["task_differences"]}
    hard = rows["easy", "hard"]
    assert hard["low"] < -0.04 < hard["high"] < 0
    assert hard["p_holm"] < 1e-3
    assert rows["easy", "also easy"]["p_holm"] > 0.05
    assert tables["tasks"][0]["experts_per_token"] == 1.5  # 3 pairs a token in 2 layers


def test_families_of_equal_tasks_are_wrong_together_at_most_as_often_as_said() -> None:
    rng, spec = np.random.default_rng(2), model(ROUTERS["top_p"]).config
    families = 200
    wrong = sum(
        any(
            row["p_holm"] < 0.05
            for row in list_task_tables({name: plant(rng, 15, 0.4) for name in "abcd"}, spec)[
                "task_differences"
            ]
        )
        for _ in range(families)
    )
    assert wrong <= 0.05 * families + 1.96 * np.sqrt(families * 0.05 * 0.95)


def test_few_questions_and_constant_routing_have_no_interval() -> None:
    spec = model(ROUTERS["top_k"]).config
    single, constant = [QuestionCounts(10, 320.0, 40)], [QuestionCounts(n, 32.0 * n, 4 * n) for n in (3, 7)]
    tables = list_task_tables({"single": single, "constant": constant}, spec)
    assert [(row["low"], row["high"]) for row in tables["tasks"]] == [(None, None), (None, None)]
    assert [row["activated_ratio"] for row in tables["tasks"]] == [0.25, 0.25]
    assert tables["task_differences"] == [
        {
            "task": "single",
            "other": "constant",
            "difference": 0.0,
            "low": None,
            "high": None,
            "p": None,
            "p_holm": None,
        }
    ]


def test_dense_models_and_tasks_that_write_text_are_refused(
    moe_model: Transformer, selection: TaskSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="the model is dense and has no experts to look at"):
        measure_questions(model(None), words(), LENGTH, selection)

    def write(lm: Any, *others: Any) -> dict[str, Any]:
        lm.measured.questions.clear()
        return {}

    monkeypatch.setattr("hmoe.evaluate.harness.evaluate_task", write)
    with pytest.raises(ConfigError, match="task arc_easy: has no answers to score, only text to be written"):
        measure_questions(moe_model, words(), LENGTH, selection)


def test_texts_of_questions_are_contexts_with_their_right_answers(selection: TaskSelection) -> None:
    """Against the rows of the folder."""
    assert selection.benchmarks is not None
    texts = defaultdict(list)
    for task, text in iterate_question_texts(selection, limit=4):
        texts[task].append(text)
    assert {task: len(own) for task, own in texts.items()} == dict.fromkeys(TASKS, 4)
    rows = {
        task: [json.loads(line) for line in file.read_text().splitlines()]
        for task in ("arc_easy", "winogrande", "boolq")
        for file in [selection.benchmarks.folder / f"{task}.{EVALUATED[task]}.jsonl"]
    }
    for row, text in zip(rows["winogrande"], texts["winogrande"], strict=False):
        assert text == row["sentence"].replace("_", row[f"option{row['answer']}"])
    for row, text in zip(rows["boolq"], texts["boolq"], strict=False):
        assert text.endswith(f"Question: {row['question']}?\nAnswer: {('no', 'yes')[row['label']]}")
    for row, text in zip(rows["arc_easy"], texts["arc_easy"], strict=False):
        right = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        assert text == f"Question: {row['question']}\nAnswer: {right}"
