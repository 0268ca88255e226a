"""The folder of results: finished tasks are kept, and what does not go together is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe import ConfigError
from hmoe.data.benchmark_splits import PAPER_SIX
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.evaluate import harness, language_model
from hmoe.evaluate.harness import EvaluationOptions, Reports, evaluate_tasks
from hmoe.model.transformer import Transformer
from tests.evaluate.helpers import LENGTH, ROUTERS, folder, model, words


def test_finished_tasks_are_not_evaluated_again(
    moe_model: Transformer, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third task, the same call evaluates the third, and ends as if it had not been killed."""
    names, out, count = ["piqa", "boolq", "winogrande"], tmp_path / "out", iter(range(100))
    score = language_model.score_candidates

    def killed(*arguments: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "score_candidates", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_tasks(moe_model, words(), LENGTH, names, benchmarks, out=out)
    assert sorted(p.name for p in (out / "tasks").iterdir()) == ["boolq.json", "piqa.json"]
    lines: list[str] = []
    told: list[str] = []
    reports = Reports(lines.append, lambda task, done, total: told.append(task))
    result = evaluate_tasks(moe_model, words(), LENGTH, names, benchmarks, out=out, reports=reports)
    assert [line.split(":")[0] for line in lines if "finished before" in line] == ["piqa", "boolq"]
    assert set(told) == {"winogrande"}
    fresh = evaluate_tasks(moe_model, words(), LENGTH, names, benchmarks, out=tmp_path / "fresh")
    assert result == fresh
    assert json.loads((out / "results.json").read_text()) == result
    for path in (tmp_path / "fresh").rglob("*.*"):
        assert (out / path.relative_to(tmp_path / "fresh")).read_bytes() == path.read_bytes()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(language_model, "score_candidates", refuse)


@pytest.mark.usefixtures("no_model")
def test_what_differs_is_refused(
    moe_model: Transformer, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.undo()
        patch.setattr(harness, "evaluate_task", _finished)
        evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=3), out=out)
    evaluate_tasks(
        moe_model, words(), LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=3, batch_tokens=9), out=out
    )
    for changed, name in [(EvaluationOptions(limit=2), r"limit \(3 there, 2 now\)"),
                          (EvaluationOptions(3, 1), "num_fewshot"),
                          (EvaluationOptions(3, precision="bfloat16"), "precision"),
                          (EvaluationOptions(3, begin=(1,)), "begin")]:  # fmt: skip
        with pytest.raises(
            ConfigError, match=f"holds an evaluation with another {name}.*name another folder"
        ):
            evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], benchmarks, changed, out=out)
    with pytest.raises(ConfigError, match="another context_length"):
        evaluate_tasks(
            moe_model, words(), LENGTH + 1, ["piqa"], benchmarks, EvaluationOptions(limit=3), out=out
        )
    for other, tokenizer in ((model(ROUTERS["top_k"]), words()), (moe_model, ByteTokenizer())):
        with pytest.raises(ConfigError, match="another model; name"):
            evaluate_tasks(
                other, tokenizer, LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=3), out=out
            )
    elsewhere = folder(tmp_path / "other", seed=5)
    with pytest.raises(ConfigError, match=r"piqa\.json: was evaluated on other benchmark files"):
        evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], elsewhere, EvaluationOptions(limit=3), out=out)
    record = json.loads((out / "tasks" / "piqa.json").read_text())
    for damaged in ("{", "[]", json.dumps({"data": record["data"]}), json.dumps(record | {"metrics": 1})):
        (out / "tasks" / "piqa.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"piqa\.json: damaged; delete it"):
            evaluate_tasks(
                moe_model, words(), LENGTH, ["piqa"], benchmarks, EvaluationOptions(limit=3), out=out
            )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("x")
    for occupied in (tmp_path / "thesis", tmp_path / "thesis" / "a.tex"):
        with pytest.raises(ConfigError, match="is not empty and holds no evaluation"):
            evaluate_tasks(moe_model, words(), LENGTH, ["piqa"], benchmarks, out=occupied)


def _finished(lm: Any, selection: Any, name: str, options: Any) -> dict[str, Any]:
    counts = {"documents": 1, "requests": 2, "tokens": 3, "truncated_requests": 0, "windowed_requests": 0,
              "activated_units": 4.0}  # fmt: skip
    return {"task": name, "data": selection.digest(name), "metrics": {"acc": 1.0}, "chance": 0.5,
            "majority_class": None, "activated_ratio": 0.5, **counts}  # fmt: skip


def test_results_of_one_folder_are_summed_up_together(
    moe_model: Transformer, benchmarks: Path, tmp_path: Path
) -> None:
    for task in PAPER_SIX:
        last = evaluate_tasks(
            moe_model,
            words(),
            LENGTH,
            [task.name],
            benchmarks,
            EvaluationOptions(limit=2),
            out=tmp_path / "o",
        )
    assert list(last["tasks"]) == ["social_iqa"]
    together = json.loads((tmp_path / "o" / "results.json").read_text())
    whole = evaluate_tasks(
        moe_model, words(), LENGTH, [task.name for task in PAPER_SIX], benchmarks, EvaluationOptions(limit=2)
    )
    assert together["average_of_six"] == whole["average_of_six"]
    assert together["activated_ratio"] == whole["activated_ratio"]
