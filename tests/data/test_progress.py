"""How far a preparation came is kept in its folder, and nothing else is taken for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe import DataError
from hmoe.data.documents import InputPosition
from hmoe.data.losses import EncodingLosses
from hmoe.data.progress import PrepareState, load_progress, remove_progress, save_progress
from hmoe.data.shards import Shard

KEY: dict[str, Any] = {"tokenizer": "bytes", "validation": 0.5}
STATE = PrepareState(
    7, InputPosition(1, 2, 3, 4), 5, EncodingLosses(texts=6), (Shard("a.bin", "train", "d", 1, 1, 1, "0"),)
)


def test_a_folder_is_begun_and_continued(tmp_path: Path) -> None:
    assert load_progress(tmp_path, KEY) == PrepareState()
    (tmp_path / ".train-d-00000.bin.tmp").write_text("of a segment that was killed")
    save_progress(tmp_path, KEY, STATE)
    assert load_progress(tmp_path, KEY) == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
    for _ in range(2):
        remove_progress(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"is not empty \(holds thesis\.tex\); choose another folder"):
        load_progress(tmp_path, KEY)


def test_other_options_are_named(tmp_path: Path) -> None:
    save_progress(tmp_path, KEY, STATE)
    with pytest.raises(DataError, match=r"other inputs or options \(max_bad, validation\)"):
        load_progress(tmp_path, {**KEY, "validation": 0.1, "max_bad": 1})


@pytest.mark.parametrize("content", ["{", "{}", "[1]", json.dumps({"rule": 2, "key": KEY})])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(DataError, match=r"progress\.json: damaged; delete"):
        load_progress(tmp_path, KEY)


@pytest.mark.parametrize("rule", [{}, {"rule": 1}])
def test_a_preparation_begun_by_another_rule_is_not_continued(rule: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps({"key": KEY, "position": [0, 0], **rule}))
    with pytest.raises(DataError, match=r"begun by another version, .* delete it and prepare again"):
        load_progress(tmp_path, KEY)
