import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hmoe import ConfigError, DataError, RunBusyError
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import open_index
from hmoe.data.tokenizer import load_tokenizer
from hmoe.storage import hash_file, write_atomic
from tests.conftest import sentences


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def test_every_document_is_in_exactly_one_split(corpus_jsonl: Path, tmp_path: Path) -> None:
    index = prepare_data(PrepareRequest([str(corpus_jsonl)], "bpe:300", validation=0.2), tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    decoded = []
    for shard in index.shards:
        ids = index.tokens(shard)
        assert ids.dtype == np.uint16
        assert len(ids) == shard.tokens
        pieces = np.split(ids, np.flatnonzero(ids == index.separator) + 1)
        assert len(pieces.pop()) == 0  # a separator ends every document
        documents = [tokenizer.decode(piece.tolist()) for piece in pieces]
        assert len(documents) == shard.documents
        assert sum(len(d.encode()) for d in documents) == shard.text_bytes
        decoded += [(d, shard.domain) for d in documents]
    rows = [json.loads(line) for line in corpus_jsonl.read_text().splitlines()]
    assert sorted(decoded) == sorted((row["text"], row["domain"]) for row in rows)
    assert {s.split for s in index.shards} == {"train", "valid"}
    index.verify()


def test_the_held_out_split_does_not_depend_on_order_or_neighbours(
    corpus_jsonl: Path, tmp_path: Path
) -> None:
    lines = corpus_jsonl.read_text().splitlines(keepends=True)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(reversed(lines[10:])))

    def held(path: Path, out: str) -> set[str]:
        index = prepare_data(PrepareRequest([f"d={path}"], "bytes", validation=0.3), tmp_path / out)
        texts = "".join(
            load_tokenizer(tmp_path / out).decode([i if i != 256 else 10 for i in index.tokens(s)])
            for s in index.of("valid")
        )
        return set(texts.splitlines())

    whole, part = held(corpus_jsonl, "a"), held(other, "b")
    assert part < whole


def test_small_inputs_always_hold_out_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": sentences(i, 3)}) + "\n" for i in range(3)))
    index = prepare_data(PrepareRequest([str(path)], "bytes", validation=1e-9), tmp_path / "out")
    assert sum(s.documents for s in index.of("valid")) == 1
    path.write_text(json.dumps({"text": "alone"}) + "\n")
    assert prepare_data(PrepareRequest([str(path)], "bytes"), tmp_path / "out1").of("valid") == []


def test_segments_cut_shards_and_change_no_token(corpus_jsonl: Path, tmp_path: Path) -> None:
    whole = prepare_data(PrepareRequest([str(corpus_jsonl)], "bpe:300"), tmp_path / "a")
    parts = prepare_data(PrepareRequest([str(corpus_jsonl)], "bpe:300", segment_bytes=3000), tmp_path / "b")
    assert len(parts.shards) > len(whole.shards)
    for domain in ("prose", "code"):
        joined = [np.concatenate([i.tokens(s) for s in i.of("train", domain)]) for i in (whole, parts)]
        assert np.array_equal(*joined)


def test_a_second_call_is_a_no_op_and_other_options_are_refused(corpus_jsonl: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), out)
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}
    with pytest.raises(DataError, match="other inputs or options"):
        prepare_data(PrepareRequest([str(corpus_jsonl)], "bpe:300"), out)


SCRIPT = """
import sys, os, signal
from pathlib import Path
from hmoe.data.prepare import PrepareRequest as Request, prepare_data as prepare
request = Request([sys.argv[1]], "bpe:300", segment_bytes=2000)
calls, limit = 0, int(sys.argv[3])
def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
for name in ("fsync", "replace", "rename", "unlink", "open"):
    counted(name)
prepare(request, Path(sys.argv[2]))
print("calls", calls)
"""


def test_killed_at_any_step_and_run_again_it_gives_the_same_bytes(corpus_jsonl: Path, tmp_path: Path) -> None:
    def call(out: Path, limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(corpus_jsonl), str(out), str(limit)],
            capture_output=True,
            text=True,
            check=False,
        )

    reference = tmp_path / "reference"
    done = call(reference, 0)
    steps = int(done.stdout.split()[-1])
    assert steps > 20
    for limit in range(1, steps + 1, max(1, steps // 12)):
        out = tmp_path / f"killed{limit}"
        assert call(out, limit).returncode == -signal.SIGKILL
        assert call(out, limit + 1 if limit % 2 else 0).returncode in (0, -signal.SIGKILL)
        assert call(out, 0).returncode == 0
        assert folder_bytes(out) == folder_bytes(reference)


@pytest.mark.slow
def test_sigkill_at_fifty_random_times(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text(
        "".join(json.dumps({"text": sentences(i, 400), "domain": f"d{i % 3}"}) + "\n" for i in range(400))
    )
    request = ["data", "prepare", str(path), "--tokenizer", "bpe:300"]
    run = [sys.executable, "-m", "hmoe", *request, "--out"]
    start = time.perf_counter()
    subprocess.run([*run, str(tmp_path / "reference")], check=True, capture_output=True)
    length = time.perf_counter() - start
    rng = np.random.default_rng(0)
    out, kills = tmp_path / "out", 0
    while kills < 50:
        process = subprocess.Popen([*run, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, length))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if (out / "index.json").exists():
            assert folder_bytes(out) == folder_bytes(tmp_path / "reference")
            out = tmp_path / f"out{kills}"
    subprocess.run([*run, str(out)], check=True, capture_output=True)
    assert folder_bytes(out) == folder_bytes(tmp_path / "reference")


def test_bad_input_stops_with_its_name_or_is_skipped_and_counted(corpus_jsonl: Path, tmp_path: Path) -> None:
    with corpus_jsonl.open("a") as file:
        file.write('{"nothing": 1}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:61: no field"):
        prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), tmp_path / "a")
    index = prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", max_bad=1), tmp_path / "b")
    assert index.skipped_documents == 1
    assert sum(s.documents for s in index.shards) == 61


def test_domains_with_odd_names_get_their_own_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    names = ["a/b", "a b", "../a", "é", "a_b"]
    path.write_text(
        "".join(json.dumps({"text": sentences(i, 3), "domain": n}) + "\n" for i, n in enumerate(names))
    )
    index = prepare_data(PrepareRequest([str(path)], "bytes", validation=0), tmp_path / "out")
    assert {s.domain for s in index.shards} == set(names)
    assert len({s.file for s in index.shards}) == len(names)
    assert all("/" not in s.file for s in index.shards)


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove", "index", "no index"])
def test_damage_is_found_and_named(corpus_jsonl: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    shard = out / prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), out).shards[0].file
    content = bytearray(shard.read_bytes())
    content[7] ^= 4
    {
        "flip": lambda: shard.write_bytes(content),
        "shorten": lambda: shard.write_bytes(content[:-2]),
        "remove": shard.unlink,
        "index": lambda: (out / "index.json").write_text("{}"),
        "no index": (out / "index.json").unlink,
    }[damage]()
    with pytest.raises(DataError, match="index.json" if "index" in damage else shard.name):
        open_index(out).verify()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", True), ("file", 0.5), ("file", "a" * 3000), ("file", "../x"), ("file", ""), ("file", "a\0b"),
        ("domain", {}), ("domain", True), ("split", None), ("tokens", "7"), ("tokens", True), ("sha256", 1),
        ("dtype", "float32"), ("dtype", "x"), ("weights", "top_p"), ("weights", 7), ("weights", {"web": "x"}),
        ("vocab_size", "257"), ("separator", 1.5), ("request", []), ("skipped_documents", None), ("begin", 3),
        ("losses", 3), ("shards", {}), ("shards", [3]), ("format", []),
        ("weights", {"web": -1}), ("weights", {"web": 0}),
        ("weights", {"web": float("nan")}), ("weights", {"web": float("inf")}), ("weights", {"web": 10**400}),
        ("begin", [1e999]), ("begin", "12"), ("begin", [-3]), ("begin", [257]), ("separator", -1),
        ("separator", 10**30),
        ("empty_documents", "x"), ("losses", {"texts": "x"}), ("vocab_size", 0), ("vocab_size", 10**30),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_damage(
    corpus_jsonl: Path, tmp_path: Path, key: str, value: object
) -> None:
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), tmp_path / "out")
    file = tmp_path / "out" / "index.json"
    tree = json.loads(file.read_text())
    (tree["shards"][0] if key in tree["shards"][0] else tree)[key] = value
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"index\.json") as error:
        open_index(tmp_path / "out")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"key": 5}, {"threshold": "x"}, {"position": 3}, {"position": [0, 0, 0, "x"]}, {"position": [0]},
        {"segment": None},
        {"shards": [3]}, {"shards": {}}, {"losses": {"texts": []}}, {"rule": None},
    ],
)  # fmt: skip
def test_a_damaged_record_of_progress_is_one_line(
    corpus_jsonl: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    request, out, begun = (
        PrepareRequest([str(corpus_jsonl)], "bytes", segment_bytes=4000),
        tmp_path / "out",
        [],
    )

    def stop(path: Path, content: bytes) -> None:
        write_atomic(path, content)
        begun.append(json.loads(content))
        if begun[-1]["shards"]:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.data.progress.write_atomic", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_data(request, out)
    for damaged in (json.dumps(begun[-1] | change), "[" * 100_000):
        (out / "progress.json").write_text(damaged)
        with pytest.raises(DataError, match=r"damaged|begun"):
            prepare_data(request, out)


def test_one_byte_that_is_no_text_does_not_show_the_whole_index(corpus_jsonl: Path, tmp_path: Path) -> None:
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), tmp_path / "out")
    file = tmp_path / "out" / "index.json"
    file.write_bytes(b"\xff" + file.read_bytes())
    with pytest.raises(DataError, match="damaged: UnicodeDecodeError") as error:
        open_index(tmp_path / "out")
    assert len(str(error.value)) < 500


def test_a_token_above_the_vocabulary_is_told_before_training(corpus_jsonl: Path, tmp_path: Path) -> None:
    """Of a folder whose index agrees with its shards."""
    out = tmp_path / "out"
    shard = prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), out).shards[0]
    ids = np.fromfile(out / shard.file, "<u2")
    ids[7] = 257
    ids.tofile(out / shard.file)
    tree = json.loads((out / "index.json").read_text())
    tree["shards"][0]["sha256"] = hash_file(out / shard.file)
    (out / "index.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"holds token 257, index\.json says that all are below 257"):
        open_index(out).verify()


def test_a_folder_that_was_made_anew_is_read_anew(corpus_jsonl: Path, tmp_path: Path) -> None:
    """Also where the same path leads to another folder: relative ones, from another working directory."""
    for tokenizer, largest in (("bytes", 256), ("bpe:300", 299)):
        index = prepare_data(PrepareRequest([str(corpus_jsonl)], tokenizer), tmp_path / "out")
        assert index.tokens(index.shards[0]).max() <= largest
        assert hashlib.sha256(index.tokens(index.shards[0]).tobytes()).hexdigest() == index.shards[0].sha256
        shutil.rmtree(tmp_path / "out")


def test_two_at_once_are_refused(corpus_jsonl: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunBusyError):
            prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes"), tmp_path / "out")


def test_bad_requests(corpus_jsonl: Path, tmp_path: Path) -> None:
    for options in (
        {"validation": 1.0},
        {"validation": float("nan")},
        {"max_bad": -1},
        {"tokenizer": "bpe:x"},
    ):
        with pytest.raises(ConfigError):
            PrepareRequest([str(corpus_jsonl)], **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="it has code, prose"):
        prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", weights={"poetry": 1.0}), tmp_path / "a")
    empty = tmp_path / "e.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no document to train on"):
        prepare_data(PrepareRequest([str(empty)], "bytes"), tmp_path / "b")


@pytest.mark.slow
def test_memory_stays_flat_on_a_large_corpus(tmp_path: Path) -> None:
    """Ten times the text may not need noticeably more memory (bytes tokenizer; peak RSS of a child process)."""

    def peak(documents: int) -> int:
        path = tmp_path / f"{documents}.jsonl"
        with path.open("w") as file:
            for i in range(documents):
                file.write(json.dumps({"text": sentences(i % 50, 2000)}) + "\n")
        command = [
            sys.executable,
            "-m",
            "hmoe",
            "data",
            "prepare",
            str(path),
            "--out",
            str(tmp_path / f"out{documents}"),
            "--tokenizer",
            "bytes",
        ]
        pid = os.spawnv(os.P_NOWAIT, sys.executable, command)
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        return usage.ru_maxrss

    small, large = peak(300), peak(3000)  # about 30 MB and 300 MB of text
    assert large < small + 60_000  # KiB
