"""`hmoe inspect` from end to end: files, errors, interruptions, folders of other families."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from hmoe.cli import inspection_lines
from hmoe.cli.inspection_files import _remove_earlier as remove_earlier
from hmoe.cli.inspection_lines import list_inspection_lines
from hmoe.cli.main import run_command_line
from tests.conftest import sentences
from tests.train.helpers import run

SMALL = ["--tokens", "1500", "--sample", "64"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "r"
    run(folder, "train.steps=2", recipe="tiny-topp")
    return folder


def look(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    assert run_command_line(["inspect", *words]) == code
    shown = capfd.readouterr()
    return shown.out, shown.err


def test_tables_figures_and_lines_of_a_run(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = look(capfd, str(trained), *SMALL, "--figures", "svg,png")
    folder = trained / "inspect"
    record = json.loads((folder / "inspection.json").read_bytes())
    for name, rows in record["tables"].items():
        with (folder / f"{name}.csv").open(newline="") as file:
            stored = list(csv.DictReader(file))
        assert len(stored) == len(rows)
        for row, same in zip(rows, stored, strict=True):
            for key, value in row.items():
                if isinstance(value, float):
                    assert math.isclose(float(same[key]), value)
                elif not isinstance(value, bool):
                    assert same[key] == ("" if value is None else str(value))
    positions = json.loads((folder / "positions.json").read_bytes())["positions"]
    assert {row["layer"] for row in positions} == {0, 1}
    svgs = sorted(folder.glob("*.svg"))
    assert len(svgs) >= 8
    assert {path.stem for path in svgs} == {path.stem for path in folder.glob("*.png")}
    for path in svgs:
        ElementTree.parse(path)
    assert not list(folder.glob(".*"))  # what was read is thrown away at the end
    assert out.startswith("text        the run's held-out documents")
    assert f"tables and {2 * len(svgs)} figures: {folder}" in out
    assert f"hmoe report {trained} --out {trained}/report.html" in out
    assert all(len(line) <= 80 or line.startswith(("  ", "tokens", "tables")) for line in out.splitlines())


def test_json_is_the_record(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text(sentences(0, 30))
    words = [
        str(trained),
        "--text",
        str(text),
        "--sample",
        "0",
        "--out",
        str(tmp_path / "o"),
        "--figures",
        "none",
    ]
    out, _ = look(capfd, *words, "--json")
    record = json.loads(out)
    assert record["text"]["source"] == str(text)
    assert "worth" not in record["tables"]
    assert record["next"] == [f"hmoe inspect {trained} 'She was not at home.'"]
    assert not list((tmp_path / "o").glob("*.svg"))
    _, err = look(capfd, *words)  # again into a folder of its own
    assert f"will replace the inspection of {text} ({record['text']['tokens']:,} tokens)" in err
    (tmp_path / "o" / "mine.txt").write_text("mine")
    (tmp_path / "o" / "redundancy-layer0.svg").write_text("of an earlier version")
    look(capfd, *words[:-4], "--out", str(tmp_path / "o"), "--figures", "svg")
    assert (tmp_path / "o" / "widths.svg").is_file()
    look(capfd, *words)
    assert not list((tmp_path / "o").glob("*.svg"))  # of an earlier inspection
    assert (tmp_path / "o" / "mine.txt").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    _, err = look(capfd, *words[:-4], "--out", str(tmp_path / "other"), code=2)
    assert "exists and is not empty" in err


def test_chosen_tokens_and_senses(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    senses = tmp_path / "senses.csv"
    senses.write_text("word,senses\ne,3\na,7\nt,2\n")
    words = [
        str(trained),
        "--tokens",
        "3000",
        "--sample",
        "0",
        "--figures",
        "none",
        "--out",
        str(tmp_path / "o"),
    ]
    out, _ = look(capfd, *words, "--token", "e", "--token", "q", "--senses", str(senses), "--json")
    record = json.loads(out)
    tables = record["tables"]
    assert {row["text"] for row in tables["chosen_tokens"]} == {"e", "q"}
    lines = list_inspection_lines(record, [], None)
    start = next(i for i, line in enumerate(lines) if line.startswith("token type"))
    for line, text in zip(lines[start + 1 :], "eq", strict=False):
        whole = next(r for r in tables["chosen_tokens"] if r["text"] == text and r["layer"] is None)
        assert line.startswith(repr(text))
        assert f" {whole['count']:,} " in line
        if whole["count"]:
            most = max(
                (r for r in tables["chosen_tokens"] if r["text"] == text and r["layer"] == 1),
                key=lambda r: r["share"],
            )
            assert f"1:{most['expert']} {most['share']:.0%}" in line
    assert any(row["feature"] == "senses" for row in tables["difficulty_curves"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--figures", "gif"], "--figures gif: 'gif' must be one of svg, png, pdf, none; nearest is"),
        (["--figures", "none,svg"], "none goes with no other form"),
        (["--text-field", "a"], "--text-field has no effect without --text"),
        (["--limit", "3"], "--limit has no effect without --tasks"),
        (["--tasks", "piqa", "--text", "x"], "--text has no effect with --tasks"),
        (
            ["--tasks", "piqa", "--tokens", "9"],
            "--tokens: with --tasks name the number of questions by --limit",
        ),
        (["some text", "--window", "8"], "--window has no effect with TEXT"),
        (["some text", "--sample", "8"], "--sample has no effect with TEXT"),
        (["some text", "--token", "0", "--token", "1"], "--token: with TEXT it names one token"),
        (["--token", "nothing"], "--token 'nothing': no token type has this text"),
        (["--senses", "absent.csv"], "absent.csv"),
        (["--window", "1"], "--window"),
        (["--text", "absent.txt"], "absent.txt: no such file or folder"),
    ],
)
def test_errors_are_one_line(
    trained: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["inspect", str(trained), *words]) in (2, 3)
    err = capfd.readouterr().err
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("hmoe: error")]) == 1
    assert "Traceback" not in err


def test_a_missing_extra_is_one_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scipy" else find_spec(name)
    )
    _, err = look(capfd, str(trained), code=2)
    assert "need the plot extra: pip install" in err


def describe_worth(*rows: tuple[float, float | None]) -> list[str]:
    """The lines on worth, of experts 0:0, 0:1 and so on with a difference and a p."""
    place = dict(layer=0, width=8, low=-1.0, high=1.0)
    worth = [place | dict(expert=e, difference=d, p=p) for e, (d, p) in enumerate(rows)]
    return list(inspection_lines._describe_worth({"worth": worth}))


def test_experts_that_are_worth_nothing_or_less_are_named() -> None:
    most, unknown, least = describe_worth((0.5, 0.01), (0.0002, 1.0), (-0.3, 0.2), (0.01, 0.03))
    assert "most: expert 0:0 of 8 units" in most
    assert "of 2 of 4 experts it is not shown" in unknown
    assert (
        "nearest to nothing, as measured: expert 0:1 of 8 units; without it the loss changes by +0.0002"
        in least
    )
    assert describe_worth() == []
    untested, least = describe_worth((0.5, None))
    assert "of 1 of 1 experts there is no test" in untested
    most, harms, least = describe_worth((0.5, 0.01), (-0.4, 0.01))
    assert ("0:0" in most, "harms: expert 0:1" in harms, "0:1" in least) == (True, True, True)


def test_a_dense_run_has_nothing_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "d", "train.steps=1", recipe="tiny-dense")
    capfd.readouterr()
    out, _ = look(capfd, str(tmp_path / "d"), "abc")
    assert "a dense model: there are no experts" in out
    assert "activated" not in out
    _, err = look(capfd, str(tmp_path / "d"), code=2)
    assert "is dense and has no experts to look at" in err


def make_folder(family: str, folder: Path) -> Path:
    """A small model of another family, as transformers writes it, with a tokenizer of bytes."""
    import transformers

    from hmoe.data.tokenizer import train_bpe

    tokenizer = train_bpe([sentences(0, 40)], 300)
    sizes: dict[str, Any] = dict(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, num_experts_per_tok=2,
    )  # fmt: skip
    kinds = {
        "Mixtral": dict(num_local_experts=4),
        "Qwen3Moe": dict(num_experts=4, moe_intermediate_size=12, head_dim=8),
        "Olmoe": dict(num_experts=4),
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes, **kinds[family])
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.content)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return folder


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "Olmoe"])
def test_other_families_are_looked_into(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(family, tmp_path / family)
    text = tmp_path / "t.txt"
    text.write_text(sentences(1, 40))
    before = sorted(path.name for path in folder.iterdir())
    out, _ = look(capfd, str(folder), "--text", str(text), "--sample", "64", "--json")
    record = json.loads(out)
    assert record["model"]["widths"] == [12 if family == "Qwen3Moe" else 24] * 4
    assert record["text"]["window"] == 64
    assert len(record["tables"]["worth"]) == 8
    assert sorted(path.name for path in folder.iterdir()) == before  # nothing is written unasked
    _, err = look(capfd, str(folder), code=2)
    assert "has no held-out documents; name a text with --text" in err


def test_a_moved_run_is_looked_into_where_it_lies(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved, ignore=shutil.ignore_patterns("inspect"))
    monkeypatch.chdir(moved)
    look(capfd, ".", *SMALL, "--figures", "none")
    assert (moved / "inspect" / "inspection.json").is_file()


def test_an_earlier_record_names_files_of_its_own_folder_only(tmp_path: Path) -> None:
    """A run folder may come from elsewhere: what its record names is removed before anew is written."""
    folder = tmp_path / "run" / "inspect"
    folder.mkdir(parents=True)
    for name in ("precious.csv", "run/precious.csv", "run/inspect/activation.csv"):
        (tmp_path / name).write_text("x")
    named = {"../../precious": [], "../precious": [], str(tmp_path / "precious"): [], "activation": []}
    (folder / "inspection.json").write_text(json.dumps({"tables": named}))
    remove_earlier(folder)
    assert sorted(path.name for path in tmp_path.rglob("*.csv")) == ["precious.csv", "precious.csv"]
    for tables in (["../../precious"], {"a\0b": []}, {"experts": 5}, {"clusters": [{}]}, 3):
        (folder / "inspection.json").write_text(json.dumps({"tables": tables}))
        remove_earlier(folder)
    assert (tmp_path / "precious.csv").exists()
