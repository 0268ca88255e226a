"""Hugging Face folders and safetensors headers with values changed: one line, or a model that works."""

import contextlib
import functools
import json
import random
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import hmoe
from hmoe import CheckpointError, HMoEError, NonFiniteError
from hmoe.checkpoint.manifest import MANIFEST, write_manifest
from hmoe.checkpoint.pieces import TensorFiles
from hmoe.checkpoint.store import load_checkpoint
from hmoe.hub.export import ExportOptions, export_opened_model
from hmoe.runs.open_model import open_model
from hmoe.runs.weights import StoredTensors
from tests.faults.campaign import Case, check
from tests.faults.mutations import (
    NONSENSE,
    check_command_line,
    check_user_error,
    draw_like,
    limit_memory,
    mutate_bytes,
    mutate_tree,
    show_input,
)
from tests.train.helpers import run

_FOLDERS, _HEADERS, _IMPORTS = 25, 100, 3
_MINI = ("model.layers=1", "model.dim=16", "train.eval_every=0", "train.steps=2", "train.save_every=1")
_JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def make_folders(base: Path) -> None:
    """Train a small run, export it whole and in shards, and write a Mixtral of the same tokenizer."""
    from transformers import MixtralConfig, MixtralForCausalLM  # slow

    torch.set_num_threads(1)
    run(base / "run", *_MINI)
    for name, size in (("own", "5GB"), ("sharded", "4KB")):
        opened = open_model(base / "run", lambda line: None)
        export_opened_model(opened, base / "run", base / name, ExportOptions(shard_size=size))
    config = MixtralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3, max_position_embeddings=64,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(base / "mixtral")
    for name in _JSON[1:]:
        if (base / "own" / name).is_file() and not (base / "mixtral" / name).is_file():
            shutil.copy(base / "own" / name, base / "mixtral" / name)


def _change_json(rng: random.Random, folder: Path) -> str:
    file = folder / rng.choice([name for name in (*_JSON, _JSON[0], _JSON[0]) if (folder / name).is_file()])
    tree: Any = json.loads(file.read_bytes())
    words = "; ".join(
        mutate_tree(rng, tree, lambda old: draw_like(rng, old)) for _ in range(rng.choice((1, 1, 2)))
    )
    try:
        file.write_text(json.dumps(tree))
    except ValueError:  # more digits than Python writes
        file.write_text('{"vocab_size": ' + "9" * 5000 + "}")
    return f"{file.name}: {words}"


def _damage_json(rng: random.Random, folder: Path) -> str:
    file = rng.choice(sorted(folder.glob("*.json")))
    bad = mutate_bytes(rng, file.read_bytes())
    file.write_bytes(
        rng.choice((bad, bad, bad, b"", b"[]", b"null", b"[" * 100_000, b"{" * 99, b"\xff\xfe{\0}\0"))
    )
    return f"{file.name}: bytes changed"


def _change_weights(rng: random.Random, folder: Path) -> str:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kind = rng.choice(("removed", "renamed", "dtype", "shape", "added", "nan", "scalar", "empty"))
    if kind == "renamed":
        tensors[rng.choice((name + "x", name.replace("0", "7"), "a\nb", "x" * 2000))] = tensor
    elif kind == "dtype":
        kind = str(
            dtype := rng.choice(
                (torch.int8, torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn)
            )
        )
        tensors[name] = tensor.to(dtype)
    elif kind == "shape":
        tensors[name] = rng.choice(
            (tensor[:-1], tensor.T, tensor[None], tensor.flatten(), torch.cat((tensor, tensor)))
        ).contiguous()
    elif kind == "added":
        tensors |= {
            name: tensor,
            rng.choice(("more.weight", "model.layers.1.x", "lm_head.bias")): torch.ones(2),
        }
    elif kind in ("nan", "scalar", "empty"):
        tensors[name] = {"nan": tensor * float("nan"), "scalar": torch.tensor(1.0), "empty": tensor[:0]}[kind]
    save_file(tensors, file)
    return f"{file.name}: {name}: {kind}"


def _change_weights_bytes(rng: random.Random, folder: Path) -> str:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    bad, words = change_header(rng, file.read_bytes())
    file.write_bytes(bad)
    return f"{file.name}: {words}"


def _change_folder(rng: random.Random, folder: Path) -> str:
    """Change a folder once or twice; return what was done."""
    words = rng.choice(_CHANGES)(rng, folder)
    if rng.random() < 0.3:
        with contextlib.suppress(
            ValueError, IndexError, SafetensorError
        ):  # the first change left nothing to change
            words += "; " + rng.choice(_CHANGES)(rng, folder)
    return words


_CHANGES = (_change_json, _change_json, _change_json, _damage_json, _change_weights, _change_weights_bytes)


def change_folders(case: Case) -> int:
    """Open twenty-five changed folders, and import some."""
    rng = case.draw()
    limit_memory()
    for number in range(_FOLDERS):
        folder = case.folder / str(number)
        kind = rng.choice(("own", "sharded", "mixtral", "mixtral"))
        shutil.copytree(case.base / kind, folder)
        words = f"{kind}: {_change_folder(rng, folder)}"
        try:
            ask_model(folder)
            codes = {
                0,
                2,
                3,
                4,
            }  # importing gives another precision and another recipe, which may refuse more
        except HMoEError as error:
            check_user_error(error, words)
            codes = (
                {0, 2, 3, 4} if isinstance(error, NonFiniteError) else {2, 3, 4}
            )  # it asks the model for nothing
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} ({str(error)[:150]!r}) for {words}") from error
        if number < _IMPORTS:
            check_command_line(["import", str(folder), str(case.folder / "run")], codes, words)
            shutil.rmtree(case.folder / "run", ignore_errors=True)
        shutil.rmtree(folder)
    return _FOLDERS


def ask_model(folder: Path) -> None:
    """Open a folder as a user does, and ask its model and its tokenizer for something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tokenizer = hmoe.open(folder)
    [ids] = tokenizer.encode(["The old river"])
    with torch.no_grad():
        logits = model(torch.tensor([ids[:16]]))[0]
    shape = (1, min(len(ids), 16), model.config.vocab)
    check(tuple(logits.shape) == shape, f"logits have shape {tuple(logits.shape)}, must have {shape}")
    tokenizer.decode(ids)


def change_header(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Return a safetensors file with another header."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = rng.choice(
        ("value", "value", "offsets", "offsets", "shape", "dtype", "bytes", "length", "data", "metadata")
    )
    words = kind
    if kind == "length":
        size = rng.choice(
            (0, 1, length - 1, length + 1, 10**9, 2**63, 2**64 - 1, len(content), rng.randrange(1 << 20))
        )
        return struct.pack("<Q", size) + header + data, f"header of {size} bytes"
    if kind == "data":
        data = rng.choice((data[:-1], data + b"x", b"", data[: len(data) // 2]))
    elif kind == "bytes":
        header = mutate_bytes(rng, header)
    else:
        tree = json.loads(header)
        words = _change_tensor(rng, tree, kind)
        try:
            header = json.dumps(tree).encode(errors="surrogatepass")
        except ValueError:
            header = b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'
    return struct.pack("<Q", len(header)) + header + data, f"header {words}"


def _change_tensor(rng: random.Random, tree: Any, kind: str) -> str:
    if kind == "value":
        return mutate_tree(rng, tree, lambda old: draw_like(rng, old))
    if kind == "metadata":
        tree["__metadata__"] = rng.choice(
            (*NONSENSE, {"rows": "["}, {"a": 1}, {"rows": json.dumps({"x": 1})}, {"rows": "[" * 9999})
        )
        return f"__metadata__ = {show_input(tree['__metadata__'])}"
    name = rng.choice([name for name in tree if name != "__metadata__"])
    entry = tree[name]
    if kind == "dtype":
        entry["dtype"] = rng.choice(
            (
                "F64",
                "F16",
                "BF16",
                "I8",
                "I64",
                "U64",
                "BOOL",
                "F8_E4M3",
                "F4",
                "C64",
                "O",
                "object",
                "f32",
                3,
            )
        )
        return f"{name}: dtype {entry['dtype']}"
    numbers = entry["data_offsets" if kind == "offsets" else "shape"]
    if numbers:
        numbers[rng.randrange(len(numbers))] = rng.choice(
            (-1, 0, 1, 2, 4, 8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64, 0.5, "4", None)
        )
    else:
        numbers.append(rng.choice((0, 1, 2**62)))
    return f"{name}: {kind} {numbers}"


def fuzz_headers(case: Case) -> int:
    """Read a hundred changed files as a checkpoint, as a part of one, and as weights of a Hugging Face folder."""
    rng = case.draw()
    limit_memory()
    own, checkpoint = case.folder / "own", case.folder / "step-00000002"
    shutil.copytree(case.base / "own", own)
    shutil.copytree(case.base / "run" / "checkpoints" / checkpoint.name, checkpoint)
    digest = json.loads((checkpoint / MANIFEST).read_bytes())["digest"]
    good = {
        file: file.read_bytes() for file in (own / "model.safetensors", *checkpoint.glob("*.safetensors"))
    }
    for _ in range(_HEADERS):
        file = rng.choice(sorted(good))
        bad, words = change_header(rng, good[file])
        file.write_bytes(bad)
        words = f"{file.name}: {words}"
        if file.parent == own:
            _check_reading(functools.partial(_read_weights, own), words, file)
        else:
            _check_reading(functools.partial(_read_parts, checkpoint, file.name), words, file)
            (checkpoint / MANIFEST).unlink()
            write_manifest(checkpoint, digest)
            # The digest says that a file which still loads is the same state.
            _check_reading(functools.partial(load_checkpoint, checkpoint), words, file)
        file.write_bytes(good[file])
    return _HEADERS


def _read_weights(folder: Path) -> None:
    tensors = StoredTensors(folder)
    for name in sorted(tensors.unread):
        tensors[name].double().sum()


def _read_parts(folder: Path, name: str) -> None:
    files = TensorFiles(folder, [name])
    for key in files.shapes:
        files.read(key)


def _check_reading(read: "functools.partial[Any]", words: str, file: Path) -> None:
    try:
        read()
    except BaseException as error:
        check_user_error(error, f"{words}, read by {read.func.__name__}")
        check(isinstance(error, CheckpointError), f"{type(error).__name__} for {words}")
        check(str(file.parent) in str(error), f"the error does not name the folder: {error}; for {words}")
