"""Files that make a folder load where hmoe is not installed are generated from this package's own sources.

Nothing is kept twice. transformers copies `modeling_hmoe.py` and what it imports relatively, so the package
is flattened: `hmoe.model.moe` becomes `hmoe_model_moe.py`, imports follow. The kernels become their
definition in plain PyTorch.
"""

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hmoe
from hmoe.errors import ConfigError
from hmoe.model.losses import LOSS_FUNCTIONS
from hmoe.specs.routers import ROUTERS

_NAMES = {"hmoe.hub.configuration": "configuration_hmoe", "hmoe.hub.modeling": "modeling_hmoe"}
_AUTO = {
    "AutoConfig": "configuration_hmoe.HMoEConfig",
    "AutoModel": "modeling_hmoe.HMoEModel",
    "AutoModelForCausalLM": "modeling_hmoe.HMoEForCausalLM",
}
_COMPILES = "_can_compile_fullgraph = True"
_DOOR = '''\
"""The expert computation: its definition in plain PyTorch. \
The package has faster ones, also of the router."""

from hmoe.kernels.reference import expert_ffn_reference


def expert_ffn(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, widths, backend=None):
    """See `expert_ffn_reference`."""
    return expert_ffn_reference(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, widths)


class Rule(tuple):
    """What kernels are told, of which there are none here."""

    def __new__(cls, *fields):
        return super().__new__(cls, fields)


def can_fuse(tensor):
    """Never: without the package's kernels everything is computed by its definition."""
    return False


fuses_router = can_fuse
select_experts = rotate_pairs = softmax_loss = None
'''


def write_code_files(folder: Path) -> None:
    """Write the code files and name them in config.json (`auto_map`)."""
    for module, text in _closure():
        (folder / f"{_flat(module)}.py").write_text(text, encoding="utf-8")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps(config | {"auto_map": _AUTO}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _closure() -> Iterator[tuple[str, str]]:
    """Yield (module, rewritten source) of the two entry files and of what they import from hmoe."""
    entries = [*_NAMES, *_extensions()]
    waiting, seen = list(entries), set(entries)
    while waiting:
        module = waiting.pop()
        text, needed = _rewritten(_DOOR if module == "hmoe.kernels" else _source(module))
        for name in needed - seen:
            seen.add(name)
            waiting.append(name)
        if module == "hmoe.hub.modeling":
            assert text.count(_COMPILES) == 1
            text = text.replace(_COMPILES, _COMPILES.replace("True", "False"))  # the definition loops
        if module == "hmoe.hub.configuration":
            # They register what they define; transformers copies modules that are imported in this form only.
            text += "".join(
                f"from .{_flat(module)} import {name}\n" for module, name in _extensions().items()
            )
        yield module, text


def _extensions() -> dict[str, str]:
    """Return the modules outside this package that register a router or a loss, with a name of each."""
    definitions: list[Any] = [*ROUTERS.values(), *LOSS_FUNCTIONS.values()]
    return {each.__module__: each.__name__ for each in definitions if each.__module__.split(".")[0] != "hmoe"}


def _source(module: str) -> str:
    source = importlib.import_module(module).__file__
    assert source is not None
    return Path(source).read_text(encoding="utf-8")


def _rewritten(source: str) -> tuple[str, set[str]]:
    """Return a source that imports flat modules, but nothing for type checkers, and the modules it needs."""
    lines, needed = source.splitlines(keepends=True), set()
    for node in reversed(ast.parse(source).body):
        begin, end = node.lineno - 1, node.end_lineno
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            lines[begin:end] = []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hmoe":
            names = [(_home(node.module or "", alias.name), alias) for alias in node.names]
            needed |= {home for home, _ in names}
            lines[begin:end] = [f"from .{_flat(home)} import {ast.unparse(alias)}\n" for home, alias in names]
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "hmoe" for alias in node.names):
            raise ConfigError(f"{ast.unparse(node)}: cannot be exported; write `from hmoe import NAME`")
    return "".join(lines), needed


def _home(module: str, name: str) -> str:
    """Return the module that defines a name: names of `hmoe` itself are found where they are at home."""
    return hmoe._HOME[name] if module == "hmoe" else module


def _flat(module: str) -> str:
    return _NAMES.get(module) or module.replace(".", "_")
