"""`hmoe generate`, and the verbs that lead to it."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from tests.conftest import sentences, tiny
from tests.train.helpers import run as train_run


def test_prepare_train_eval_generate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Our own text, as jsonl.zst and parquet, through every verb."""
    import pyarrow
    import zstandard
    from pyarrow import parquet

    texts = [sentences(i, 20) for i in range(40)]
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts[:20]).encode()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    parquet.write_table(pyarrow.table({"text": texts[20:]}), tmp_path / "in" / "b.parquet")
    data, folder = str(tmp_path / "data"), str(tmp_path / "run")
    assert (
        run_command_line(
            [
                "data",
                "prepare",
                str(tmp_path / "in"),
                "--out",
                data,
                "--tokenizer",
                "bpe:300",
                "--validation",
                "0.1",
            ]
        )
        == 0
    )
    assert "vocabulary 300" in capfd.readouterr().out
    small = [o for o in tiny("tiny") if "tokenizer" not in o and "data.path" not in o]
    words = [
        "train",
        "tiny",
        "--run",
        folder,
        *small,
        f"data.path={data}",
        "train.steps=40",
        "train.sample_every=0",
    ]
    assert run_command_line(words) == 0
    capfd.readouterr()
    assert run_command_line(["eval", folder, "--json"]) == 0
    numbers = json.loads(capfd.readouterr().out)
    assert numbers["step"] == 40
    assert 0 < numbers["bits_per_byte"] < 8
    assert (
        run_command_line(["eval", folder, "--text", str(tmp_path / "in" / "b.parquet"), "--window", "16"])
        == 0
    )
    assert "bits_per_byte" in capfd.readouterr().out
    assert run_command_line(["generate", folder, "The old", "--max-tokens", "12", "--seed", "3"]) == 0
    first = capfd.readouterr().out
    assert first.startswith("The old")
    assert run_command_line(["generate", folder, "The old", "--max-tokens", "12", "--seed", "3"]) == 0
    assert capfd.readouterr().out == first


def test_generate_says_when_it_leaves_the_trained_length(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_run(tmp_path / "run")
    assert (
        run_command_line(
            ["generate", str(tmp_path / "run"), "abc", "--max-tokens", "40", "--temperature", "0"]
        )
        == 0
    )
    assert "43 tokens; the model was trained on 32" in capfd.readouterr().err
