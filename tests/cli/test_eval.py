"""`hmoe eval` of text, as it is seen on terminals and read by programs."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.runs.open_model import open_model
from tests.cli.terminal import Terminal
from tests.conftest import sentences
from tests.train.helpers import run

BAR = re.compile("[█░]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    domains = ("prose", "code")
    rows = [{"text": sentences(i, 3), "domain": domains[i % 2]} for i in range(20)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = prepare_data(PrepareRequest([str(folder / "t.jsonl")], "bytes", validation=0.2), folder / "data")
    data = [f"data.path={index.folder}", "data.tokenizer=null"]
    run(folder / "r", *data, "train.steps=1", recipe="tiny-topp")
    return folder / "r"


def open_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, stderr: bool = True) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("hmoe.cli.progress._LIVE_SECONDS", 0.0)
    terminal = Terminal(columns)
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream if stderr else io.StringIO())
    return terminal


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_results_stand_alone_on_a_terminal(
    trained: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch, columns)
    assert run_command_line(["eval", str(trained)]) == 0
    screen = terminal.close()
    bars = [line for lines in terminal.frames() for line in lines if BAR.search(line)]
    assert "100%" in bars[-1]
    assert all(len(bar) < columns for bar in bars)
    shown = "\n".join(screen.lines)
    assert not BAR.search(shown)
    assert screen.lines[0].startswith("text")
    names = (
        "step",
        "documents",
        "tokens",
        "nats_per_token",
        "activated_ratio",
        "domain",
        "code",
        "next:",
    )
    for name in names:
        assert re.search(f"^{name}", shown, re.MULTILINE), name


def test_without_standard_error_a_terminal_has_the_results_alone(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch, 80, stderr=False)
    assert run_command_line(["eval", str(trained)]) == 0
    screen = terminal.close()
    assert "\x1b" not in terminal.shown
    assert screen.lines[0].startswith("text   ")
    assert screen.wrapped == []


def test_the_text_and_what_it_activated_are_named(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["eval", str(trained), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["text"] == "the run's held-out documents, whole"
    widths = open_model(trained, print).model.config.moe.expert_widths  # type: ignore[union-attr]
    assert result["activated_ratio"] == pytest.approx(result["mean_activated_width"] / sum(widths))
    for name in ("mean_activated_width", "activated_parameters"):
        parts = result["domains"].values()
        mean = sum(part[name] * part["tokens"] for part in parts) / result["tokens"]
        assert result[name] == pytest.approx(mean)
    file = tmp_path / "a.txt"
    file.write_text(sentences(1, 3))
    assert run_command_line(["eval", str(trained), "--text", str(file)]) == 0
    shown = capfd.readouterr()
    numbers, _, steps = shown.out.partition("next:\n")
    lines = dict(line.split(maxsplit=1) for line in numbers.splitlines())
    assert lines["text"] == str(file)
    assert re.fullmatch(r"\d\.\d{4}", lines["nats_per_token"])
    assert re.fullmatch(r"[\d,]+", lines["activated_parameters"])
    assert steps == f"  hmoe generate {trained} 'She was'\n"
