"""The paper's benchmarks as they are: downloaded, and scored end to end on a model trained here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.data.benchmark_splits import PAPER_TASKS
from hmoe.evaluate.harness import EvaluationOptions, evaluate_tasks
from hmoe.evaluate.language_model import LanguageModel
from hmoe.runs.open_model import open_model
from tests.evaluate.independent import accuracies, questions

ROWS = {
    "piqa.validation": 1838, "hellaswag.validation": 10042, "boolq.validation": 3270, "arc_easy.validation": 570,
    "arc_easy.test": 2376, "arc_challenge.validation": 299, "arc_challenge.test": 1172, "winogrande.validation": 1267,
    "social_iqa.validation": 1954,
}  # fmt: skip
LIMIT = 200
LENGTH = 320  # the longest of these answers has 267 tokens, which the stock model must read at once


@pytest.mark.slow
def test_two_hundred_documents_of_each_task_against_an_independent_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, trained, exported = tmp_path / "benchmarks", tmp_path / "run", tmp_path / "mixtral"
    assert run_command_line(["data", "benchmarks", str(folder)]) == 0
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert {name.removesuffix(".jsonl"): entry["rows"] for name, entry in manifest["data"].items()} == ROWS
    assert (
        run_command_line(
            ["train", "quickstart", "train.steps=60", "train.sample_every=0", "--run", str(trained)]
        )
        == 0
    )
    assert run_command_line(["export", str(trained), str(exported), "--format", "mixtral"]) == 0

    opened = open_model(trained, print)
    result = evaluate_tasks(
        opened.model,
        opened.tokenizer,
        LENGTH,
        ["all"],
        folder,
        EvaluationOptions(limit=LIMIT),
        out=tmp_path / "out",
    )
    stock = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(exported),
        tokenizer=AutoTokenizer.from_pretrained(exported),
        device="cpu", batch_size=8, max_length=LENGTH,
    )  # fmt: skip
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    for task in PAPER_TASKS:
        asked = questions(folder, task.name, LIMIT)
        plain, normed, alone = accuracies(opened.model, opened.tokenizer, asked, LENGTH)
        record = result["tasks"][task.name]
        assert record["documents"] == LIMIT
        assert record["metrics"]["acc"] == plain, task.name
        assert record["metrics"].get("acc_norm", normed) == normed, task.name

        loaded = manager.load([task.local])["tasks"][task.local]
        loaded.set_config(key="num_fewshot", value=0)
        loaded.build_all_requests(limit=LIMIT, rank=0, world_size=1)
        ours = LanguageModel(opened.model, opened.tokenizer, LENGTH).loglikelihood(loaded.instances)
        stock_answers = stock.loglikelihood(loaded.instances, disable_tqdm=True)
        for (nats, greedy), (stock_nats, stock_greedy), truth in zip(ours, stock_answers, alone, strict=True):
            assert nats == pytest.approx(truth, rel=1e-5, abs=1e-3)
            assert nats == pytest.approx(stock_nats, rel=1e-5, abs=1e-3)
            assert greedy == stock_greedy
    assert result["tasks"]["boolq"]["truncated_requests"] > 0  # truncation was compared too

    # And the folder with the harness's own command, which knows nothing of hmoe.
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={exported},max_length={LENGTH}",
    ]
    command += [
        "--tasks",
        "hmoe6",
        "--include_path",
        str(folder),
        "--limit",
        "20",
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path / "hf"),
    ]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ)
    (written,) = (tmp_path / "hf").rglob("results_*.json")
    harness_results = json.loads(written.read_text())["results"]
    ours_20 = evaluate_tasks(
        opened.model, opened.tokenizer, LENGTH, ["all"], folder, EvaluationOptions(limit=20)
    )
    for task in PAPER_TASKS[:6]:
        assert harness_results[task.local]["acc,none"] == ours_20["tasks"][task.name]["metrics"]["acc"], (
            task.name
        )
    assert harness_results["hmoe6"]["acc,none"] == pytest.approx(ours_20["average_of_six"]["acc"])
    capfd.readouterr()
