"""Damaged text and damaged token shards: named, or counted as skipped, or harmless."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from hmoe import DataError
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.data.batches import Batches, describe_weights
from hmoe.data.open import open_data
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import Index, open_index
from hmoe.data.tokenizer_folder import load_data_tokenizer
from hmoe.storage import hash_file
from tests.conftest import sentences, tiny
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.mutations import (
    check_user_error,
    draw_like,
    flip_bit,
    limit_memory,
    mutate_bytes,
    mutate_tree,
)
from tests.faults.text_files import prepare_bad_text

_DAMAGES = 20


def prepare_shards(base: Path) -> None:
    """Prepare a folder of two domains with several shards and a tokenizer of its own."""
    rows = [{"text": sentences(i, 5), "domain": "prose" if i % 3 else "code"} for i in range(40)]
    (base / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_data(
        PrepareRequest([str(base / "corpus.jsonl")], "bpe:290", validation=0.2, segment_bytes=3000),
        base / "data",
    )


def _open_as_run(folder: Path, fingerprint: str | None) -> Index:
    """Open a folder as training does, and read from it."""
    config = _make_config(str(folder))
    index = open_data(config, fingerprint)
    index.verify()
    load_data_tokenizer(index)
    describe_weights(index)
    index.describe_split()
    if index.losses is not None:
        index.losses.describe()
    Batches(index, config.data, 0)[0]
    return index


def _make_config(path: str) -> RunConfig:
    data = ["data.tokenizer=null", f"data.path={path}"]
    return recipes.read_recipe("tiny", [*tiny("tiny"), *data])[1]


def damage_shards(case: Case) -> int:
    """Damage a data folder in twenty ways; whatever training would read must be as it was, or it is refused."""
    rng = case.draw()
    limit_memory()
    good = open_index(case.base / "data")
    tokens = {shard.file: good.tokens(shard).tobytes() for shard in good.shards}
    for number in range(_DAMAGES):
        folder = case.folder / str(number)
        shutil.copytree(case.base / "data", folder)
        words, is_changed = rng.choice(_SHARD_DAMAGE)(rng, folder)
        for fingerprint in (good.fingerprint, None):
            index = _open_damaged(folder, fingerprint, words)
            if index is None:
                continue
            check(not is_changed or fingerprint is None, f"is opened though changed: {words}")
            if fingerprint is not None:
                same = {shard.file: index.tokens(shard).tobytes() for shard in index.shards}
                check(same == tokens, f"other tokens are read: {words}")
        shutil.rmtree(folder)
    return _DAMAGES


def _open_damaged(folder: Path, fingerprint: str | None, words: str) -> Index | None:
    try:
        return _open_as_run(folder, fingerprint)
    except Exception as error:
        words = f"{words} (fingerprint given: {fingerprint is not None})"
        check_user_error(error, words)
        check(isinstance(error, DataError), f"{type(error).__name__} for {words}")
        check(str(folder) in str(error), f"the error does not name the folder: {error}; for {words}")
    return None


def _draw_shard(rng: random.Random, folder: Path) -> Path:
    return folder / rng.choice(open_index(folder).shards).file


def _change_shard(rng: random.Random, folder: Path) -> tuple[str, bool]:
    file = _draw_shard(rng, folder)
    content = file.read_bytes()
    kind = rng.choice(("flip", "cut", "longer", "empty", "missing", "id", "folder"))
    words = kind
    if kind == "flip":
        content, words = flip_bit(rng, content)
    elif kind == "cut":
        content = content[: rng.randrange(len(content))]
    elif kind == "id":
        place = rng.randrange(len(content) // 2) * 2
        content = content[:place] + b"\xff\xff" + content[place + 2 :]
    elif kind in ("longer", "empty"):
        content = content + rng.randbytes(rng.randint(1, 4)) if kind == "longer" else b""
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(content)
    return f"{file.name}: {words}", True


def _swap_shards(rng: random.Random, folder: Path) -> tuple[str, bool]:
    first, second = (folder / shard.file for shard in rng.sample(open_index(folder).shards, 2))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    return f"{first.name} and {second.name} exchanged", contents[0] != contents[1]


def _add_shard(rng: random.Random, folder: Path) -> tuple[str, bool]:
    shutil.copy(
        _draw_shard(rng, folder), folder / rng.choice(("train-99999.bin", "x.tokens", "index.json.bak"))
    )
    return "a file added that the index does not name", False


def _edit_index(rng: random.Random, folder: Path) -> tuple[str, bool]:
    """Change values of index.json; what training does not depend on may change."""
    tree: Any = json.loads((folder / "index.json").read_bytes())
    words = "; ".join(
        mutate_tree(rng, tree, lambda old: draw_like(rng, old)) for _ in range(rng.choice((1, 1, 2)))
    )
    try:
        text = json.dumps(tree)
    except ValueError:  # more digits than Python writes
        text = "{}"
    (folder / "index.json").write_text(text)
    return f"index.json: {words}", False


def _damage_index(rng: random.Random, folder: Path) -> tuple[str, bool]:
    content = mutate_bytes(rng, (folder / "index.json").read_bytes())
    (folder / "index.json").write_bytes(content)
    return "index.json: bytes changed", False


def _change_shard_with_index(rng: random.Random, folder: Path) -> tuple[str, bool]:
    """Put an id above the vocabulary or another shard in place, and make the index agree."""
    tree = json.loads((folder / "index.json").read_bytes())
    shard = rng.choice(tree["shards"])
    ids = np.fromfile(folder / shard["file"], tree["dtype"])
    ids[rng.randrange(len(ids))] = rng.choice((tree["vocab_size"], 65535))
    ids.tofile(folder / shard["file"])
    shard["sha256"] = hash_file(folder / shard["file"])
    (folder / "index.json").write_text(json.dumps(tree))
    return f"{shard['file']}: an id above the vocabulary, with an index that agrees", True


_SHARD_DAMAGE = (
    _change_shard,
    _change_shard,
    _swap_shards,
    _add_shard,
    _edit_index,
    _edit_index,
    _damage_index,
    _change_shard_with_index,
)

TESTS = (
    FaultTest(
        name="R3b",
        fault="damaged input of `hmoe data prepare`: encodings, NUL, long lines, cut archives, broken records",
        promise="an error that names the file (and line), or a folder in which every good document is as it was",
        unit="inputs",
        run=prepare_bad_text,
        cases=40,
    ),
    FaultTest(
        name="R11",
        fault="token shards flipped, cut, exchanged, added, with ids above the vocabulary, or a changed index.json",
        promise="refused with the folder's name when a run opens it, or the tokens are as they were",
        unit="damaged folders",
        run=damage_shards,
        cases=50,
        prepare=prepare_shards,
    ),
)
