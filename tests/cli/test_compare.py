"""`hmoe compare`: the verb, its forms, and what it prints on two kinds of terminals."""

import csv
import io
import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from tests.runs.test_comparison import write_seeds


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_seeds(Path("runs"), "tiny", "tiny", [2.0, 2.1, 2.2], width=236.0)
    write_seeds(Path("runs"), "equal", "tiny-equal", [2.1, 2.21, 2.3], width=236.0)
    write_seeds(Path("runs"), "long", "tiny-dense", [2.1, 2.21, 2.3], width=0, steps=16)
    return Path("runs")


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_is_whole(
    columns: int, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run_command_line(["compare", "runs", "--baseline", "equal"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    assert "ahead by 0.1033 ± 0.0143" in text
    assert "*" in next(line for line in text.splitlines() if line.startswith("long"))
    assert "more, seed 0)" in text
    assert " 236 " in text
    assert "Holm" in text


def test_exact_forms(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["compare", "runs", "--json", "--baseline", "equal"]) == 0
    record = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["tiny"]["bits_per_byte_by_seed"] == [2.0, 2.1, 2.2]
    assert rows["tiny"]["flops_differ"] is False
    assert rows["long"]["flops_differ"] is True
    assert run_command_line(["compare", "runs", "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["name"]: row["num_seeds"] for row in table} == {"tiny": "3", "equal": "3", "long": "3"}
    for form, mark in (("--markdown", "| tiny | 3 |"), ("--latex", r"tiny & 3 &")):
        assert run_command_line(["compare", "runs", form]) == 0
        assert mark in capsys.readouterr().out


def test_user_errors_are_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["compare", "runs", "--json", "--csv"], "--json and --csv: choose one form"),
        (["compare", "runs", "--baseline", "eqal"], "--baseline eqal: must be a row of the table"),
        (["compare", "nothing"], "nothing: no such folder"),
    ):
        assert run_command_line(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
