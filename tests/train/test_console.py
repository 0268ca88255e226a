"""What a person sees of a whole training: lines, warnings, the end, and next steps that work."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.data.prepare import PrepareRequest, prepare_data
from tests.cli.terminal import Terminal
from tests.conftest import tiny
from tests.train.helpers import SMALL, rows, run

BAR = re.compile("[█░]")


def data(folder: Path, jsonl: Path, validation: float = 0.1) -> list[str]:
    index = prepare_data(PrepareRequest([str(jsonl)], "bytes", validation=validation), folder)
    return [f"data.path={index.folder}", "data.tokenizer=null"]


def read_steps(out: str) -> list[list[str]]:
    """The words of each command after `next:`."""
    return [shlex.split(line) for line in out.partition("next:\n")[2].splitlines() if line.startswith("  ")]


def train(folder: Path, *overrides: str) -> None:
    words = ["train", "tiny", "--run", str(folder), *tiny("tiny"), *SMALL, *overrides]
    assert run_command_line(words) == 0


def test_every_next_step_works(
    tmp_path: Path, corpus_jsonl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn")
    from hmoe.serve.http import server

    served: list[object] = []
    listen = server.open_listening_socket
    monkeypatch.setattr(server, "open_listening_socket", lambda host, port: listen(host, 0))
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: served.append(self))
    folder = tmp_path / "my run"
    words = [*data(tmp_path / "d", corpus_jsonl, validation=0.02), "train.steps=2"]
    train(folder, *words)
    printed = capsys.readouterr().out
    train(folder, *words)
    again = capsys.readouterr().out
    assert again == printed[printed.index("finished:") :].replace("finished", "finished already", 1)
    steps = read_steps(printed)
    assert [step[1] for step in steps] == ["generate", "eval", "inspect", "report", "serve", "train"]
    for step in steps:
        assert run_command_line(step[1:]) == 0
        assert ("next:" in capsys.readouterr().out) == (step[1] in ("train", "eval", "inspect", "report"))
    assert served
    assert rows(folder)[-1]["step"] == 4


def test_a_run_without_a_validation_split_says_nothing_of_it(
    tmp_path: Path, corpus_jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "r", *data(tmp_path / "d", corpus_jsonl, validation=0))
    out = capsys.readouterr().out
    assert "validation" not in out
    assert [step[1] for step in read_steps(out)] == ["generate", "report", "serve", "train"]


def test_validation_names_the_sequences_it_is_of(
    tmp_path: Path, corpus_jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(tmp_path / "r", *data(tmp_path / "d", corpus_jsonl))
    out = capsys.readouterr().out
    assert "validation: 4 held-out sequences of 32 tokens, always the same ones\n" in out
    loss, bits = (table[2][f"validation_{name}"] for name in ("loss", "bits_per_byte"))
    assert f"step 3: validation on 4 held-out sequences: loss {loss:.4f}, {bits:.4f} bits per byte\n" in out
    run(tmp_path / "s", *data(tmp_path / "d", corpus_jsonl), "train.eval_sequences=1")
    assert "on 1 held-out sequence: loss" in capsys.readouterr().out


def test_warnings_come_once_for_a_run(
    tmp_path: Path, corpus_jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(corpus_jsonl.read_text().splitlines(keepends=True)[:8]))
    words = [
        *data(tmp_path / "d", few, validation=0.75), "model.moe.router.k=1", "data.sequence_length=512",
        "data.batch_tokens=1024", "train.eval_every=1", "optim.lr=10", "optim.warmup_steps=0",
    ]  # fmt: skip
    run(tmp_path / "r", *words, "train.steps=12")
    lines = capsys.readouterr().out.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    for text in (
        "router gradient",
        "more is held out",
        "the budget of 12,288 tokens reads",
        "validation loss rose",
    ):
        assert sum(all(word in line for word in text.split()) for line in warnings) == 1, text
    run(tmp_path / "r", *words, "train.steps=14")
    assert "warning: " not in capsys.readouterr().out
    assert not any("warnings" in row for row in rows(tmp_path / "r"))


def test_short_documents_are_named_when_a_run_begins(
    tmp_path: Path, corpus_jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*data(tmp_path / "d", corpus_jsonl), "data.sequence_length=2048", "data.batch_tokens=4096"]
    run(tmp_path / "r", *words, "train.steps=1")
    assert "most documents are shorter than a sequence" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 200])
def test_a_training_on_a_terminal(
    tmp_path: Path, corpus_jsonl: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(columns)
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr("hmoe.cli.progress._LIVE_SECONDS", 0.0)
    words = [*tiny("tiny"), *SMALL, *data(tmp_path / "d", corpus_jsonl)]
    assert run_command_line(["train", "tiny", "--run", str(tmp_path / "r"), *words]) == 0
    screen = terminal.close()
    live = [lines for lines in terminal.frames() if lines and BAR.search(lines[-2] if len(lines) > 1 else "")]
    table = rows(tmp_path / "r")
    assert len(live) >= len(table)
    first, second = live[-1][-2:]
    assert re.match(r"[█░]{10,24} 100%  loss \d", first)
    assert re.match(r"experts of \d+ to \d+ units: [▁▂▃▄▅▆▇█]{8}", second)
    last = table[-1]
    assert f"{last['validation_bits_per_byte']:.4f} bits/byte" in first
    assert f"  {last['mean_activated_width']:.0f} of 32 units" in first
    ending = r"  epoch 0\.\d\d  step 6  2\.00 experts per token$"
    assert re.search(ending, second if columns == 80 else first)
    assert re.search(r"  [\d,]+ tokens/s(  |$)", first)
    assert not any(BAR.search(line) for line in screen.lines if not line.startswith("experts of"))
    assert [line for line in screen.lines if line.startswith(("step 3: validation", "finished: step 6"))]
    assert screen.lines[-1].startswith("  hmoe train") or screen.wrapped


def test_without_a_terminal_a_line_holds_everything(
    tmp_path: Path, corpus_jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny("tiny"), *SMALL, *data(tmp_path / "d", corpus_jsonl)]
    assert run_command_line(["train", "tiny", "--run", str(tmp_path / "r"), *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line]
    assert lines[0].startswith("16% | loss ")
    last = lines[-1].split(" | ")
    assert last[0] == "100%"
    assert [re.sub(r"[\d,.]+", "N", part) for part in last[1:7]] == [
        "loss N", "N bits/byte", "N of N units", "N tokens/s", "epoch N", "step N",
    ]  # fmt: skip
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
