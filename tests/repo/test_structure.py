"""The tree is the architecture: layers, names and sizes are guarded, and each guard has a case in which it fails."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hmoe

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "hmoe"
LAYERS = {
    "errors": 0, "storage": 0,
    "specs": 1,
    "config": 2,
    "data": 3, "kernels": 3,
    "model": 4,
    "checkpoint": 5,
    "runs": 6,
    "train": 7, "evaluate": 7, "surgery": 7,
    "adapt": 8, "serve": 8, "bench": 8,
    "hub": 9,
    "cli": 10, "__main__": 11,
}  # fmt: skip
SIBLINGS_APART = {3, 7, 8}
TORCH_FREE = {"errors", "storage", "specs", "config", "data"}
TORCH_ONLY = {
    "kernels",
    "model",
}  # these must work where pydantic, typer, yaml and numpy's friends are missing
NOT_FOR_TORCH_ONLY = {
    "pydantic",
    "typer",
    "yaml",
    "rich",
    "tokenizers",
    "safetensors",
    "numpy",
    "transformers",
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported anywhere, but not those for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def wrong_imports(room_name: str, code: str) -> list[str]:
    wrong = []
    for name in imports(ast.parse(code)):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "hmoe" and target in LAYERS and target != room_name:
            later = LAYERS[target] > LAYERS[room_name]
            sibling = LAYERS[target] == LAYERS[room_name] and LAYERS[room_name] in SIBLINGS_APART
            wrong += [name] * (later or sibling)
        wrong += [name] * (top == "torch" and room_name in TORCH_FREE)
        wrong += [name] * (top in NOT_FOR_TORCH_ONLY and room_name in TORCH_ONLY)
        wrong += [name] * (name.startswith("torch.distributed") or top in ("matplotlib", "pickle"))
        wrong += [name] * (top == "triton" and room_name != "kernels")
    return wrong


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_to_an_earlier_layer(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == SOURCE:
        return
    assert wrong_imports(room(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room_name", "code"),
    [
        ("config", "import torch"),
        ("data", "from hmoe.kernels import expert_ffn"),
        ("model", "from hmoe.train.loop import train"),
        ("model", "import numpy as np"),
        ("train", "def f():\n    from hmoe.evaluate import perplexity"),
        ("train", "import torch.distributed as dist"),
        ("model", "import triton"),
        ("train", "from hmoe.bench import layer"),
        ("kernels", "from hmoe import config"),
    ],
)
def test_the_layer_guard_can_fail(room_name: str, code: str) -> None:
    if room_name == "kernels":
        assert wrong_imports("config", "from hmoe import kernels") != []
    else:
        assert wrong_imports(room_name, code) != []


def test_public_names_are_sorted_resolve_and_are_documented() -> None:
    assert set(hmoe.__all__) == set(hmoe._HOME)
    assert hmoe.__all__ == sorted(set(hmoe.__all__))
    for name in hmoe.__all__:
        assert inspect.getdoc(getattr(hmoe, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hmoe.nothing  # noqa: B018
    assert set(hmoe.__all__) <= set(dir(hmoe))


def test_the_layer_works_where_only_torch_is_installed() -> None:
    code = f"""
import sys
for name in {sorted(NOT_FOR_TORCH_ONLY - {"numpy"})}:
    sys.modules[name] = None
import torch, hmoe
moe = hmoe.MoE(dim=16, widths=hmoe.arithmetic(64, 4), router=hmoe.TopP(p=0.6))
y, routing = moe(torch.randn(5, 16))
(y.sum() + hmoe.load_balance(routing) + hmoe.parameter_penalty(routing, moe.widths)).backward()
import hmoe.model.transformer, hmoe.bench.layer, hmoe.bench.decode, hmoe.kernels.build
from hmoe.kernels.ragged import launch
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_signatures_of_the_public_surface() -> None:
    expected = {
        "arithmetic": ["total", "n", "ratio", "multiple"],
        "geometric": ["total", "n", "ratio", "multiple"],
        "hybrid": ["total", "n", "multiple"],
        "equal": ["total", "n"],
        "MoE": [
            "dim",
            "widths",
            "router",
            "hyper",
            "shared",
            "zero",
            "shared_network_layer",
            "dtype",
            "device",
        ],
        "load_balance": ["routing", "weights"],
        "parameter_penalty": ["routing", "widths", "norm"],
        "router_entropy": ["routing", "scale"],
        "router_z": ["routing"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(hmoe, name)).parameters) == parameters
    assert hmoe.TopK() == hmoe.TopK(k=2)
    assert hmoe.TopP() == hmoe.TopP(p=0.6)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            limit = (
                70 if "ragged" in path.parts else 60
            )  # a Triton kernel names every tensor in its signature
            assert node.end_lineno - node.lineno < limit, node.name


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
FLAGS_OF_OTHERS = {
    "data/benchmarks.py": "pip's own",
    "bench/decode.py": "of `python -m hmoe.bench.decode`, where typer is not installed",
    "bench/layer.py": "of `python -m hmoe.bench.layer`, where typer is not installed",
    "kernels/build.py": "of `python -m hmoe.kernels.build`, where typer is not installed",
}


def flags_in(code: str) -> list[str]:
    """Flags of a command line in strings that are no docstrings."""
    tree = ast.parse(code)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [flag for text in texts if id(text) not in docstrings for flag in FLAG.findall(text.value)]


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) not in ("cli", "__main__")], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_flags_are_named_by_the_command_line_alone(path: Path) -> None:
    """The library names arguments (`argument=` of `hmoe.errors`), in which the command line shows flags."""
    flags = flags_in(path.read_text())
    name = str(path.relative_to(SOURCE))
    if name in FLAGS_OF_OTHERS:
        assert flags != [], "take it off the list"
    else:
        assert flags == []


def test_the_guard_of_flags_can_fail() -> None:
    assert flags_in(
        '"""Of `hmoe x --text`."""\n# --text\nraise ConfigError(f"a {b}: give --text-field")'
    ) == ["--text-field"]
    assert flags_in('"a -- b", "--", "x--text", "---text"') == []
    assert set(FLAGS_OF_OTHERS) <= {str(p.relative_to(SOURCE)) for p in FILES}


SUFFIX = re.compile(r"^[a-z_0-9]+_([BLTVDHGCEKNFMhP1]{1,4})$")


def test_tensor_names_carry_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every local x_TD of the model and the kernels has as many axes as letters, and each letter one size."""
    wrong: list[str] = []

    def check(frame: object, event: str, _: object) -> object:
        if event == "return":
            sizes: dict[str, int] = {}
            for name, value in frame.f_locals.items():  # type: ignore[attr-defined]
                match = SUFFIX.match(name)
                if not (match and isinstance(value, torch.Tensor)):
                    continue
                if len(match[1]) != value.dim():
                    wrong.append(f"{frame.f_code.co_qualname}: {name} has {value.dim()} axes")  # type: ignore[attr-defined]
                    continue
                for letter, size in zip(match[1], value.shape, strict=True):
                    expected = 1 if letter == "1" else sizes.setdefault(letter, size)
                    # rows and hidden units are those of one expert: they change within a function
                    if letter not in "MhLP" and size != expected:
                        wrong.append(
                            f"{frame.f_code.co_qualname}: {letter} of {name} is {size}, was {expected}"
                        )  # type: ignore[attr-defined]
        return check

    def trace(frame: object, event: str, _: object) -> object:
        file = frame.f_code.co_filename  # type: ignore[attr-defined]
        return check if ("hmoe/model" in file or "hmoe/kernels" in file) else None

    from tests.model.test_transformer import config

    transformer = importlib.import_module("hmoe.model.transformer")
    model = transformer.build(config(kv_heads=2), 0)
    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        x_BLD, _ = model.hidden(torch.randint(0, 29, (2, 7)))
        x_BLD.sum().backward()
        cross_entropy = importlib.import_module("hmoe.model.cross_entropy").cross_entropy
        cross_entropy(
            torch.randn(9, 4, requires_grad=True), torch.randn(5, 4), torch.zeros(9, dtype=torch.long), 4
        ).backward()
    finally:
        sys.settrace(before)
    assert wrong == []

    def wrongly_named() -> None:
        x_TD = torch.zeros(3)
        assert x_TD is not None

    sys.settrace(lambda f, e, a: check)  # type: ignore[arg-type, return-value]
    try:
        wrongly_named()
    finally:
        sys.settrace(before)
    assert len(wrong) == 1  # the guard can fail
