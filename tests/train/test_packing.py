"""Which packing a run has: the newest when it begins, its own when it is resumed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hmoe import CheckpointError
from hmoe.checkpoint.store import load_checkpoint, load_newest_checkpoint, save_checkpoint
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import ACROSS, WITHIN
from hmoe.train import session
from tests.train.helpers import run


def restored(**state: Any) -> Any:
    return SimpleNamespace(step=3, state={"data": "fingerprint", **state})


def test_packing_of_a_resumed_run_is_its_own() -> None:
    assert session._packing(None) is None
    assert session._packing(restored()) == WITHIN  # begun by an earlier version
    assert session._packing(restored(packing=ACROSS)) == ACROSS
    assert session._packing(restored(data=None)) is None  # given weights: nothing was read yet
    with pytest.raises(
        CheckpointError, match="packing = 'sorted', this version knows across shards, within shards"
    ):
        session._packing(restored(packing="sorted"))


def test_a_run_begun_by_an_earlier_version_resumes_to_the_same_losses(
    corpus_jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", segment_bytes=2000), tmp_path / "d")
    data = [f"data.path={tmp_path / 'd'}", "data.tokenizer=null", "model.layers=1", "train.eval_every=2"]
    with monkeypatch.context() as earlier:
        earlier.setattr(session, "_packing", lambda checkpoint: WITHIN)
        whole = run(tmp_path / "whole", *data, "train.steps=2")
        run(tmp_path / "old", *data, "train.steps=1")
    old = load_checkpoint(tmp_path / "old" / "checkpoints" / "step-00000001")
    del old.state["packing"]
    folder = tmp_path / "old" / "checkpoints" / "step-00000001"
    folder.rename(tmp_path / "aside")
    save_checkpoint(tmp_path / "old", old, 2)
    assert "packing" not in json.loads((folder / "state.json").read_bytes())
    resumed = run(tmp_path / "old", *data, "train.steps=2")
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    newest = load_newest_checkpoint(tmp_path / "old", quarantine=False, say=print)
    assert newest is not None
    assert newest.state["packing"] == WITHIN
    assert resumed[-1]["validation_loss"] == whole[-1]["validation_loss"]
