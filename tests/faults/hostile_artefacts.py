"""Artefacts that were made to run code, to write elsewhere or to fill the memory, as parts of a Hugging Face folder."""

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


class _Payload:
    """Leaves a marker wherever it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._marker,)


def make_pickles(marker: Path) -> dict[str, bytes]:
    """Return a payload in each form of file that holds a pickle."""
    plain = pickle.dumps(_Payload(marker))
    saved, objects = io.BytesIO(), io.BytesIO()
    torch.save({"model.embed_tokens.weight": torch.ones(2), "x": _Payload(marker)}, saved)
    np.savez(objects, text=np.array([_Payload(marker)], dtype=object))
    return {"pickle": plain, "torch": saved.getvalue(), "npz": objects.getvalue()}


def _put_pickle(form: str, name: str, is_alone: bool = False) -> Callable[[Path, Path], None]:
    def put(folder: Path, marker: Path) -> None:
        if is_alone:  # weights of this form only
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(make_pickles(marker)[form])

    return put


def _put_code(name: str, key: str) -> Callable[[Path, Path], None]:
    def put(folder: Path, marker: Path) -> None:
        code = f"import os\nos.mkdir({str(marker)!r})\nclass Evil:\n    pass\n"
        for module in (
            "evil",
            "modeling_evil",
            "tokenization_hmoe",
            "configuration_hmoe",
            "modeling_hmoe",
            "hmoe",
            "conftest",
        ):
            (folder / f"{module}.py").write_text(code)
        tree = json.loads((folder / name).read_bytes())
        tree[key] = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        (folder / name).write_text(json.dumps(tree))

    return put


def _put_index(target: str, is_link: bool = False) -> Callable[[Path, Path], None]:
    def put(folder: Path, marker: Path) -> None:
        names = list(load_file(folder / "model.safetensors"))
        outside = folder.parent / "outside.safetensors"
        shutil.move(folder / "model.safetensors", outside)
        name = str(outside) if target == "absolute" else target
        if is_link:
            (folder / name).symlink_to("/dev/zero" if is_link and target.startswith("zero") else "nowhere")
        tree = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(tree))

    return put


def _put_header(
    header: Any, length: int | None = None, data: bytes = b"\0" * 64
) -> Callable[[Path, Path], None]:
    def put(folder: Path, marker: Path) -> None:
        content = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(content) if length is None else length
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + content + data)

    return put


def _entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _put_sparse(name: str, gib: int = 8) -> Callable[[Path, Path], None]:
    """Put a large file in place that takes no room on the disk."""

    def put(folder: Path, marker: Path) -> None:
        (folder / name).write_bytes(b"{}" if name.endswith("json") else struct.pack("<Q", 2))
        os.truncate(folder / name, gib << 30)

    return put


def _put_template(text: str) -> Callable[[Path, Path], None]:
    def put(folder: Path, marker: Path) -> None:
        (folder / "chat_template.jinja").write_text(text.replace("MARKER", str(marker)))

    return put


def _put_size(**changes: Any) -> Callable[[Path, Path], None]:
    def put(folder: Path, marker: Path) -> None:
        tree = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(tree | changes))

    return put


_EMBED = "model.embed_tokens.weight"
_MANY = (
    b"{"
    + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000))
    + b"}"
)
_ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}"
# Whether the folder must be refused, and what is put into it.
FOLDERS: dict[str, tuple[bool, Callable[[Path, Path], None]]] = {
    **{f"{form} as {name}": (True, _put_pickle(form, name)) for form in ("pickle", "torch", "npz")
       for name in ("model.safetensors", "tokenizer.json", "config.json")},
    **{f"weights as {name} only": (True, _put_pickle(form, name, is_alone=True)) for form, name in (
        ("torch", "pytorch_model.bin"), ("torch", "model.pt"), ("torch", "model.pth"), ("pickle", "model.pkl"),
        ("npz", "model.npz"),
        ("pickle", "model.safetensors.index.json"), ("torch", "__0_0.distcp"))},
    **{f"{name} beside the weights": (False, _put_pickle(form, name)) for form, name in (
        ("torch", "pytorch_model.bin"), ("torch", "optimizer.pt"), ("pickle", "tokenizer_config.json"),
        ("pickle", "generation_config.json"), ("pickle", ".metadata"))},
    "auto_map in config.json": (False, _put_code("config.json", "auto_map")),
    "auto_map in tokenizer_config.json": (False, _put_code("tokenizer_config.json", "auto_map")),
    "custom_pipelines in config.json": (False, _put_code("config.json", "custom_pipelines")),
    "an index with ../": (True, _put_index("../outside.safetensors")),
    "an index with an absolute name": (True, _put_index("absolute")),
    "an index with a link to nothing": (True, _put_index("gone.safetensors", is_link=True)),
    "an index with a link to /dev/zero": (True, _put_index("zero.safetensors", is_link=True)),
    "a header of 10^9 bytes": (True, _put_header({}, length=10**9)),
    "a header of 2^64 - 1 bytes": (True, _put_header({}, length=2**64 - 1)),
    "negative offsets": (True, _put_header({_EMBED: _entry([4], [-16, 0])})),
    "overlapping offsets": (True, _put_header({_EMBED: _entry([4], [0, 16]), "b": _entry([4], [8, 24])})),
    "offsets outside": (True, _put_header({_EMBED: _entry([2**20], [0, 2**22])})),
    "offsets in reverse": (True, _put_header({_EMBED: _entry([4], [16, 0])})),
    "a shape that overflows": (True, _put_header({_EMBED: _entry([2**32, 2**32, 4], [0, 64])})),
    "a shape of 2^63": (True, _put_header({_EMBED: _entry([2**63, 2], [0, 64])})),
    "10^6 tensors": (True, _put_header(_MANY, data=b"")),
    "a header nested 10^6 deep": (True, _put_header(b'{"a":' * 1_000_000)),
    # Weights are mapped, which takes addresses but no memory; the limit counts addresses.
    "weights of 2 GiB of zeros": (True, _put_sparse("model.safetensors", 2)),
    "a config.json of 8 GiB of zeros": (True, _put_sparse("config.json")),
    "a tokenizer.json of 8 GiB of zeros": (True, _put_sparse("tokenizer.json")),
    "a tokenizer_config.json of 8 GiB of zeros": (False, _put_sparse("tokenizer_config.json")),
    "a vocabulary of 10^12": (True, _put_size(vocab_size=10**12)),
    "a width of 65,536 and 1,000 layers": (True, _put_size(hidden_size=65536, num_hidden_layers=1000)),
    "10^9 layers": (True, _put_size(num_hidden_layers=10**9)),
    "10^7 experts": (True, _put_size(expert_widths=[8] * 10**7)),
    "a chat template that leaves its sandbox": (False, _put_template(_ESCAPE)),
    "a chat template that does not end": (False, _put_template("{% for a in range(10**12) %}{% endfor %}")),
}  # fmt: skip
