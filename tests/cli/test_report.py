"""`hmoe report`."""

import json
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from tests.report.run_example import DENSE, EQUAL, UNEQUAL, write_run


def test_it_writes_a_page_says_where_and_replaces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a b"), DENSE)
    write_run(Path("runs/c"), EQUAL)
    assert run_command_line(["report", "runs", "--out", "page.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("page.html: 2 runs on one page of ")
    assert lines[1:] == [
        f"open {(tmp_path / 'page.html').as_uri()} in a browser",
        "next:",
        "  hmoe inspect runs/c",
    ]
    page = Path("page.html").read_text()
    assert "hmoe train &#39;runs/a b/config.yaml&#39; --run &#39;a b-again&#39;" in page
    assert "hmoe report runs --baseline &#39;a b&#39; --out page.html" in page
    words = ["report", "runs/a b", "--out", "page.html", "--title", "T & U", "--json"]
    assert run_command_line(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {
        "page": "page.html",
        "bytes": Path("page.html").stat().st_size,
        "runs": 1,
        "baseline": None,
        "next": [],
    }
    assert "<title>T &amp; U</title>" in Path("page.html").read_text()


def test_user_errors_are_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"), UNEQUAL)
    Path("mine.html").write_text("mine")
    for words, message in (
        (["runs", "--out", "mine.html"], "--out = mine.html: exists and is no page of this verb"),
        (["runs", "--out", "no/page.html"], "--out = no/page.html: there is no folder no"),
        (["runs", "--out", "runs"], "--out = runs: is a folder; name a file such as runs/page.html"),
        (["nothing", "--out", "page.html"], "nothing: no such folder"),
        (["runs", "--out", "page.html", "--baseline", "b"], "--baseline"),
    ):
        assert run_command_line(["report", *words]) == 2
        error = capsys.readouterr().err
        assert message.replace(" = ", " ") in error or message in error
        assert error.count("\n") == 1
    assert Path("mine.html").read_text() == "mine"
    assert not Path("page.html").exists()
