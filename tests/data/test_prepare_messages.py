"""What prepare counts, names and records, so that nothing is left out without a word."""

import json
from pathlib import Path

import numpy as np
import pytest

from hmoe import ConfigError, DataError
from hmoe.data import long_text
from hmoe.data.batches import describe_weights
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import open_index
from hmoe.data.tokenizer import load_tokenizer, train_bpe
from hmoe.data.tokenizer_folder import load_data_tokenizer, write_tokenizer


def lines(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_empty_documents_are_counted_and_skipped_ones_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "one", "", "two", "")
    with path.open("a") as file:
        file.write('{"body": "x"}\n' * 5)
    notes: list[str] = []
    index = prepare_data(
        PrepareRequest([str(path)], "bytes", validation=0, max_bad=5), tmp_path / "out", say=notes.append
    )
    assert (index.empty_documents, index.skipped_documents) == (2, 5)
    assert [line.partition(": no field")[0] for line in notes] == [
        f"skipped: {path}:{line_index}" for line_index in (5, 6, 7)
    ]
    assert sum(shard.documents for shard in index.shards) == 2


def test_data_of_earlier_versions_opens_and_is_what_the_same_command_makes(tmp_path: Path) -> None:
    request = PrepareRequest([str(lines(tmp_path / "a.jsonl", "one", "two"))], "bytes")
    index = prepare_data(request, tmp_path / "out")
    file = tmp_path / "out" / "index.json"
    tree = json.loads(file.read_text())
    assert tree.pop("empty_documents") == 0
    assert "separator" not in tree["request"]
    file.write_text(json.dumps(tree))
    assert open_index(tmp_path / "out").fingerprint == index.fingerprint
    assert prepare_data(request, tmp_path / "out").fingerprint == index.fingerprint


def test_a_separator_can_be_named_and_is_kept_with_the_data(tmp_path: Path) -> None:
    tokenizer = train_bpe(["one two three"] * 9, 300)
    lone = tmp_path / "lone.json"
    lone.write_bytes(tokenizer.content.replace(b"<|endoftext|>", b"<|fim|>"))
    path = lines(tmp_path / "a.jsonl", "one two", "three")
    with pytest.raises(DataError, match=r"no end-of-text token .*; name one as separator"):
        prepare_data(PrepareRequest([str(path)], str(lone)), tmp_path / "a")
    index = prepare_data(
        PrepareRequest([str(path)], str(lone), validation=0, separator="<|fim|>"), tmp_path / "out"
    )
    assert index.separator == tokenizer.separator
    assert (
        load_tokenizer(tmp_path / "out").separator == load_data_tokenizer(index).separator == index.separator
    )
    assert np.count_nonzero(index.tokens(index.shards[0]) == index.separator) == 2
    with pytest.raises(DataError, match="other inputs or options"):
        prepare_data(PrepareRequest([str(path)], str(lone), validation=0, separator="o"), tmp_path / "out")
    write_tokenizer(tmp_path, load_data_tokenizer(index))  # as a run folder has it
    assert load_tokenizer(tmp_path).separator == index.separator
    # An earlier version's data, of a folder whose tokenizer_config.json named the token: only the id was kept.
    (tmp_path / "out" / "tokenizer_config.json").unlink()
    assert load_data_tokenizer(index).separator == index.separator
    with pytest.raises(ConfigError, match="has no effect with bytes, which has its own"):
        PrepareRequest([str(path)], "bytes", separator="x")


def test_weights_that_draw_nothing_are_refused_and_what_is_never_drawn_is_told(tmp_path: Path) -> None:
    for name, words in (("a", 30), ("b", 20), ("c", 9)):
        lines(tmp_path / "in" / name / "x.jsonl", "word " * words)
    for weights in ({"a": 0.0}, {"a": float("nan"), "b": 1.0}, {"a": -1.0, "b": 1.0}):
        with pytest.raises(ConfigError, match="must be from 0 to 1e12, one of them above 0"):
            PrepareRequest(["x"], weights=weights)
    index = prepare_data(
        PrepareRequest([str(tmp_path / "in")], "bytes", validation=0, weights={"a": 1.0, "b": 2.0, "c": 0.0}),
        tmp_path / "out",
    )
    description = describe_weights(index)
    assert "up to 100 tokens long: b is the shortest" in description
    assert "46 tokens are in domains without a weight" in description


def test_more_held_out_than_trained_on_is_told(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "short", "long " * 100)
    index = prepare_data(PrepareRequest([str(path)], "bytes", validation=0.9), tmp_path / "out")
    train, valid = index.tokens_of("train"), index.tokens_of("valid")
    assert train
    assert valid
    assert bool(index.describe_split()) == (valid > train)
    other = prepare_data(PrepareRequest([str(path)], "bytes", validation=0), tmp_path / "none")
    assert other.describe_split() == ""


def test_a_long_document_becomes_the_shard_of_the_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"word{index % 97} and some." for index in range(3000))
    request = PrepareRequest([str(lines(tmp_path / "a.jsonl", text, "end"))], "bpe:300", validation=0)
    whole = prepare_data(request, tmp_path / "whole")
    monkeypatch.setattr(long_text, "PIECE_CHARS", 1000)
    monkeypatch.setattr(long_text, "_CALL_CHARS", 3000)
    pieces = prepare_data(request, tmp_path / "pieces")
    assert pieces.fingerprint == whole.fingerprint
    ids = whole.tokens(whole.shards[0]).tolist()
    assert load_tokenizer(tmp_path / "whole").decode(ids[: ids.index(whole.separator)]) == text
