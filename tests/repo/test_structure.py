"""The tree is the architecture: layers, names and sizes are guarded, and each guard has a case in which it fails."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import hmoe
from hmoe.config.recipes import list_presets, read_recipe
from hmoe.model.losses import compute_auxiliary_losses

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "hmoe"
LAYERS = {
    "errors": 0, "storage": 0, "units": 0,
    "specs": 1, "statistics": 1, "figures": 1,
    "config": 2,
    "data": 3, "kernels": 3,
    "model": 4,
    "checkpoint": 5, "parallel": 5,
    "runs": 6,
    "train": 7, "evaluate": 7, "surgery": 7,
    "adapt": 8, "serve": 8, "bench": 8, "analyze": 8, "report": 8, "sweep": 8,
    "hub": 9,
    "cli": 10, "__main__": 11,
}  # fmt: skip
SIBLINGS_APART = {3, 7, 8}
TORCH_FREE = {"errors", "storage", "units", "statistics", "figures", "specs", "config", "data", "report"}
PLAIN = {
    "errors",
    "storage",
    "units",
    "specs",
}  # neither pydantic nor what torch alone lacks: models are made of specs
TORCH_ONLY = {
    "kernels",
    "model",
    *PLAIN,
}  # these must work where pydantic, typer, yaml and others are missing
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
    """Modules imported anywhere, for type checking too."""
    for node in ast.iter_child_nodes(tree):
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
        wrong += [name] * (
            room_name in ("kernels", "model") and top == "hmoe" and target in LAYERS.keys() - TORCH_ONLY
        )
        wrong += [name] * (room_name == "config" and top == "numpy")
        if top == "hmoe" and target in LAYERS and target != room_name:
            later = LAYERS[target] > LAYERS[room_name]
            sibling = LAYERS[target] == LAYERS[room_name] and LAYERS[room_name] in SIBLINGS_APART
            wrong += [name] * (later or sibling)
        wrong += [name] * (top == "torch" and room_name in TORCH_FREE)
        wrong += [name] * (top in NOT_FOR_TORCH_ONLY and room_name in TORCH_ONLY)
        wrong += [name] * (name.startswith("torch.distributed") and room_name != "parallel")
        wrong += [name] * (top == "pickle")
        wrong += [name] * (top == "matplotlib" and room_name != "figures")
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
        ("config", "import numpy"),
        ("specs", "if TYPE_CHECKING:\n    import torch"),
        ("specs", "import torch"),
        ("specs", "from pydantic import BaseModel"),
        ("specs", "from hmoe.config import recipes"),
        ("model", "from pydantic import BaseModel"),
        ("surgery", "from hmoe.train import loop"),
        ("data", "from hmoe.kernels import expert_ffn"),
        ("model", "from hmoe.train.loop import train"),
        ("model", "import numpy as np"),
        ("train", "def f():\n    from hmoe.evaluate import perplexity"),
        ("train", "import torch.distributed as dist"),
        ("model", "import triton"),
        ("report", "import torch"),
        ("report", "from matplotlib import pyplot"),
        ("figures", "from hmoe.runs import summary"),
        ("train", "from hmoe.bench import layer"),
        ("kernels", "from hmoe import config"),
    ],
)
def test_the_layer_guard_can_fail(room_name: str, code: str) -> None:
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


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
FLAGS_OF_OTHERS = {
    "data/benchmark_wheel.py": "pip's own",
    "data/corpus_sources/packages.py": "pip's and npm's own",
    "bench/decode.py": "of `python -m hmoe.bench.decode`, where typer is not installed",
    "bench/layer.py": "of `python -m hmoe.bench.layer`, where typer is not installed",
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


LEGEND = set("BLTVDHGCEKNFZJUARPMh123456789")  # see CONTRIBUTING.md
CHANGING = "Mh"  # rows and hidden units are those of one expert: they change within a function
SUFFIX = re.compile(r"^[a-z_0-9]*[a-z0-9]_([A-Z][A-Zh0-9]{0,4})$")
SMALL = [name for name in list_presets() if name.startswith("tiny")]


def letters_outside_the_legend(code: str) -> list[str]:
    """Variables and arguments whose suffix has a letter that means nothing."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    names += [node.arg for node in nodes if isinstance(node, ast.arg)]
    matches = ((name, SUFFIX.match(name)) for name in dict.fromkeys(names))
    return [name for name, match in matches if match and not set(match[1]) <= LEGEND]


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in ("model", "kernels")], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_suffixes_are_letters_of_the_legend(path: Path) -> None:
    assert letters_outside_the_legend(path.read_text()) == []


def test_the_guard_of_letters_can_fail() -> None:
    assert letters_outside_the_legend("x_TD = y_TX = 1\ndef f(z_Q): _T = 2") == ["y_TX", "z_Q"]


class NamesAndShapes:
    """Collects local tensors of the model and the kernels whose axes are not those of their names."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def trace(self, frame: Any, event: str, _: object) -> object:
        file = frame.f_code.co_filename
        return self.check if "hmoe/model" in file or "hmoe/kernels" in file else None

    def check(self, frame: Any, event: str, _: object) -> object:
        if event == "return":
            sizes: dict[str, int] = {}
            for name, value in frame.f_locals.items():
                match = SUFFIX.match(name)
                if match and isinstance(value, torch.Tensor):
                    self.wrong += self.compare(
                        f"{frame.f_code.co_qualname}: {name}", match[1], value.shape, sizes
                    )
        return self.check

    def compare(self, where: str, letters: str, shape: Sequence[int], sizes: dict[str, int]) -> list[str]:
        if len(letters) != len(shape):
            return [f"{where} has {len(shape)} axes"]
        pairs = [
            (c, n, int(c) if c.isdecimal() else sizes.setdefault(c, n))
            for c, n in zip(letters, shape, strict=True)
        ]
        return [
            f"{where}: {c} is {n}, was {known}" for c, n, known in pairs if c not in CHANGING and n != known
        ]


@pytest.mark.parametrize("preset", SMALL)
def test_tensor_names_carry_their_shapes(preset: str) -> None:
    """Every local x_TD of the model and the kernels has as many axes as letters, and each letter one size."""
    from hmoe.model.transformer import Sequences, build_transformer
    from tests.conftest import tiny

    guard, config = NamesAndShapes(), read_recipe(preset, tiny(preset))[1].model
    model, tokens_BL = build_transformer(config, 0), torch.randint(0, config.vocab, (2, 7))
    before = sys.gettrace()
    sys.settrace(guard.trace)
    try:
        loss, routings = model(tokens_BL, tokens_BL, context=Sequences(noise_seed=1))
        (loss + sum(compute_auxiliary_losses(routings, config.moe).values())).backward()
    finally:
        sys.settrace(before)
    assert guard.wrong == []


def test_the_guard_of_shapes_can_fail() -> None:
    guard, before = NamesAndShapes(), sys.gettrace()

    def wrongly_named() -> None:
        x_TD, y_T, z_T = torch.zeros(3), torch.zeros(2), torch.zeros(4)
        assert x_TD is not y_T is not z_T

    sys.settrace(lambda frame, event, argument: guard.check)
    try:
        wrongly_named()
    finally:
        sys.settrace(before)
    assert [line.split(": ", 1)[1] for line in guard.wrong] == ["x_TD has 1 axes", "z_T: T is 4, was 2"]
