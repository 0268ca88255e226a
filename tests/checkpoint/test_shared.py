"""Checkpoints that several writers publish together: whole or not at all, and read by any number of readers."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe.checkpoint import shared_save
from hmoe.checkpoint.manifest import list_checkpoint_steps, locate_checkpoint
from hmoe.checkpoint.pieces import Piece, name_shared_file
from hmoe.checkpoint.shared_load import StoredCheckpoint, find_newest_checkpoint
from hmoe.checkpoint.shared_save import SharedSaver
from hmoe.checkpoint.store import load_checkpoint, load_newest_checkpoint, save_checkpoint
from hmoe.errors import CheckpointError, PeerError
from tests.checkpoint.helpers import example
from tests.threads import ThreadWorkers, work_together

SIZE = 3
MODEL = {"weight": torch.randn(7, 4), "bias": torch.randn(5)}


def by_all(work: Callable[[ThreadWorkers], Any]) -> list[Any]:
    """What each writer's work returned or raised; work gets the writer."""
    return work_together(SIZE, work)


def cut(rank: int, tensors: dict[str, torch.Tensor]) -> dict[str, Piece]:
    pieces = {}
    for name, tensor in tensors.items():
        size = -(-len(tensor) // SIZE)
        rows = tensor[rank * size : (rank + 1) * size]
        if len(rows):
            pieces[name] = Piece(rows, min(rank * size, len(tensor)), len(tensor))
    return pieces


def save(run: Path, *steps: int, keep: int = 2) -> list[Any]:
    def work(writer: ThreadWorkers) -> None:
        saver = SharedSaver(run, keep, writer)
        for step in steps:
            moments = {f"{name}.exp_avg": tensor + step for name, tensor in MODEL.items()}
            pieces = {"model": cut(writer.rank, MODEL), "optimizer": cut(writer.rank, moments)}
            saver.save(step, pieces, {"counts": {}})
        saver.finish()

    return by_all(work)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_all_writers_publish_one_checkpoint_that_one_process_reads_whole(tmp_path: Path) -> None:
    assert save(tmp_path, 1, 2, 3) == [None] * SIZE
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    folder = locate_checkpoint(tmp_path, 3)
    files = [name_shared_file(part, rank, SIZE) for part in ("model", "optimizer") for rank in range(SIZE)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "state.json", "MANIFEST.json"])
    checkpoint = load_checkpoint(folder)
    assert checkpoint.state == {"step": 3, "counts": {}}
    for name, tensor in MODEL.items():
        assert torch.equal(checkpoint.model[name], tensor)
        assert torch.equal(checkpoint.optimizer[f"{name}.exp_avg"], tensor + 3)
    newest = load_newest_checkpoint(tmp_path, quarantine=True, say=print, optimizer=False)
    assert newest is not None
    assert newest.optimizer == {}


def test_the_bytes_and_the_digest_of_equal_states_are_equal(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        save(tmp_path / run, 1)
    first, second = (
        {path.name: path.read_bytes() for path in locate_checkpoint(tmp_path / run, 1).iterdir()}
        for run in "ab"
    )
    assert first == second


@pytest.mark.parametrize("failing", range(SIZE))
def test_a_writer_that_cannot_write_stops_all_and_costs_no_older_checkpoint(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    real = shared_save.write_pieces

    def write(file: Path, pieces: Any) -> None:
        if f"rank-{failing}-" in file.name:
            file.write_bytes(b"a part")
            raise OSError(28, "No space left on device")
        real(file, pieces)

    monkeypatch.setattr(shared_save, "write_pieces", write)
    results = save(tmp_path, 2)
    assert [type(result) for result in results] == [
        CheckpointError if rank == failing else PeerError for rank in range(SIZE)
    ]
    said = str(results[0])
    assert "No space left on device" in said
    assert f"bytes of process {failing}" in said
    assert "earlier ones are intact" in said
    assert {str(result) for result in results} == {said}
    assert not any(thread.name == "hmoe-save" for thread in threading.enumerate())
    assert names(tmp_path) == ["step-00000001"]
    monkeypatch.undo()
    assert save(tmp_path, 2) == [None] * SIZE


def test_training_waits_for_the_copy_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, real = threading.Event(), shared_save.write_pieces

    def write(file: Path, pieces: Any) -> None:
        assert may_write.wait(20)
        real(file, pieces)

    monkeypatch.setattr(shared_save, "write_pieces", write)

    def work(writer: ThreadWorkers) -> None:
        saver, counts = SharedSaver(tmp_path, 2, writer), {"step": 1, "idle": [[0]]}
        saver.save(1, {"model": cut(writer.rank, MODEL), "optimizer": {}}, {"counts": counts})
        with writer.together():  # all are here while none has written
            assert not may_write.is_set()
            assert list_checkpoint_steps(tmp_path) == []
        counts["step"], counts["idle"][0][0] = 2, 7  # type: ignore[index]
        may_write.set()
        saver.finish()

    assert by_all(work) == [None] * SIZE
    assert list_checkpoint_steps(tmp_path) == [1]
    assert load_checkpoint(locate_checkpoint(tmp_path, 1)).state["counts"] == {"step": 1, "idle": [[0]]}


def test_what_is_being_saved_is_given_up_when_training_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_save, "_GRACE_SECONDS", 0.1)

    def work(writer: ThreadWorkers) -> None:
        saver = SharedSaver(tmp_path, 2, writer)
        if writer.rank == 1:  # it died: nobody hears of it
            monkeypatch.setattr(saver, "_publish", lambda *_: None)
        saver.save(1, {"model": cut(writer.rank, MODEL), "optimizer": {}}, {})
        saver.abandon()

    assert by_all(work) == [None] * SIZE
    assert list_checkpoint_steps(tmp_path) == []


def test_a_run_folder_that_is_gone_is_an_error_and_no_wait(tmp_path: Path) -> None:
    def work(writer: ThreadWorkers) -> None:
        run = tmp_path if writer.rank == 0 else tmp_path / "elsewhere"
        saver = SharedSaver(run, 2, writer)
        saver.save(1, {"model": cut(writer.rank, MODEL), "optimizer": {}}, {})
        saver.finish()

    results = by_all(work)
    assert [type(result) for result in results] == [PeerError, CheckpointError, PeerError]
    assert "cannot be written" in str(results[0])
    assert list_checkpoint_steps(tmp_path) == []


def test_what_the_disk_gives_back_must_be_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shared_save.write_pieces

    def write(file: Path, pieces: Any) -> None:
        real(file, pieces)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(shared_save, "write_pieces", write)
    assert "what can be read of it is not what was written" in str(save(tmp_path, 1)[0])
    assert list_checkpoint_steps(tmp_path) == []


def test_what_a_killed_run_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    litter = tmp_path / "checkpoints" / ".step-00000004.tmp"
    litter.mkdir(parents=True)
    (litter / ".rank-1.json").write_text('{"files": {}, "hashes": {}}')
    (litter / "model.rank-1-of-3.safetensors").write_bytes(b"half")
    assert save(tmp_path, 4) == [None] * SIZE
    assert names(tmp_path) == ["step-00000004"]
    load_checkpoint(locate_checkpoint(tmp_path, 4))


def test_what_a_killed_run_left_is_removed_by_the_next_that_looks(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (tmp_path / "checkpoints" / ".step-00000002.old").mkdir()
    assert all(stored.step == 4 for stored, _ in find(tmp_path))
    assert names(tmp_path) == ["step-00000004"]


def test_a_checkpoint_is_never_rewritten(tmp_path: Path) -> None:
    save(tmp_path, 1)
    results = save(tmp_path, 1)
    assert all("exists already and is never rewritten" in str(result) for result in results)


def find(run: Path) -> list[Any]:
    def work(writer: ThreadWorkers) -> Any:
        lines: list[str] = []
        return find_newest_checkpoint(run, writer, lines.append), lines

    return by_all(work)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name", [*(name_shared_file("model", rank, SIZE) for rank in range(SIZE)), "state.json"]
)
def test_damage_is_told_whichever_reader_sees_it_and_the_older_one_is_used(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    damage(locate_checkpoint(tmp_path, 2) / name)
    for stored, lines in find(tmp_path):
        assert isinstance(stored, StoredCheckpoint)
        assert stored.step == 1
        assert len(lines) == 1
        assert name in lines[0]
        assert "falling back" in lines[0]
    assert names(tmp_path) == ["step-00000001", "step-00000002.corrupt"]


def test_without_a_trustworthy_one_all_readers_stop(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (locate_checkpoint(tmp_path, 1) / name_shared_file("optimizer", 2, SIZE)).unlink()
    results = find(tmp_path)
    assert [type(result) for result in results] == [CheckpointError, PeerError, PeerError]
    assert "no checkpoint can be trusted" in str(results[0])
    assert "no checkpoint can be trusted" in str(find(tmp_path)[0])


def test_nothing_is_found_where_nothing_was_written(tmp_path: Path) -> None:
    assert find(tmp_path) == [(None, [])] * SIZE


def test_several_readers_take_the_checkpoint_of_one_process(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(3), keep=2)
    for stored, _ in find(tmp_path):
        tensors = stored.open_tensors()
        for part, expected in (("model", example(3).model), ("optimizer", example(3).optimizer)):
            assert tensors[part].shapes.keys() == expected.keys()
            assert all(torch.equal(tensors[part].read(name), tensor) for name, tensor in expected.items())
        stored.check_hashes({})  # it has another digest


def test_rows_in_another_s_place_are_told_by_the_digest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (stored, _), *_ = find(tmp_path)
    with pytest.raises(CheckpointError, match="digest of its tensors differs"):
        stored.check_hashes({})


def test_files_that_belong_together_but_hold_too_little_are_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = locate_checkpoint(tmp_path, 1)
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    assert set(manifest) == {"digest", "files", "manifest_sha256"}
    for rank in range(SIZE):
        (folder / name_shared_file("model", rank, SIZE)).unlink()
    with pytest.raises(CheckpointError, match="must hold exactly"):
        load_checkpoint(folder)
