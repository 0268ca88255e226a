"""Files that make a folder load where hmoe is not installed: generated from this package's own sources, never kept twice.

transformers copies `modeling_hmoe.py` and what it imports relatively, so the package is flattened: `hmoe.model.moe`
becomes `hmoe_model_moe.py`, imports follow. The kernels become their definition in plain PyTorch.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

_NAMES = {"hmoe.hub.configuration": "configuration_hmoe", "hmoe.hub.modeling": "modeling_hmoe"}
_AUTO = {
    "AutoConfig": "configuration_hmoe.HMoEConfig",
    "AutoModel": "modeling_hmoe.HMoEModel",
    "AutoModelForCausalLM": "modeling_hmoe.HMoEForCausalLM",
}
_COMPILES = "_can_compile_fullgraph = True"
_DOOR = '''"""The expert computation: its definition in plain PyTorch. The package has faster ones, also of the router."""

from hmoe.kernels.reference import expert_ffn_reference


def expert_ffn(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, widths, backend=None):
    """See `expert_ffn_reference`."""
    return expert_ffn_reference(x_TD, token_N, gate_N, num_tokens_E, w_gate_FD, w_up_FD, w_down_FD, widths)


class Rule(tuple):
    """What kernels are told, of which there are none here."""

    def __new__(cls, *fields):
        return super().__new__(cls, fields)


def fuses(tensor):
    """Never: without the package's kernels everything is computed by its definition."""
    return False


fuses_router = fuses
select_experts = rotate_pairs = softmax_loss = None
'''


def write(folder: Path) -> None:
    """Write the code files and name them in config.json (`auto_map`)."""
    for module, text in _closure():
        (folder / f"{_flat(module)}.py").write_text(text, encoding="utf-8")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"auto_map": _AUTO}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _closure() -> Iterator[tuple[str, str]]:
    """(module, rewritten source) of the two entry files and of everything they import from this package."""
    waiting, seen = list(_NAMES), set(_NAMES)
    while waiting:
        module = waiting.pop()
        text, needed = _rewritten(_DOOR if module == "hmoe.kernels" else _source(module))
        for name in needed - seen:
            seen.add(name)
            waiting.append(name)
        if module == "hmoe.hub.modeling":
            assert text.count(_COMPILES) == 1
            text = text.replace(_COMPILES, _COMPILES.replace("True", "False"))  # the definition loops
        yield module, text


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _rewritten(source: str) -> tuple[str, set[str]]:
    """The source with relative imports of flat modules and without imports for type checkers; the modules it needs."""
    lines, needed = source.splitlines(keepends=True), set()
    for node in reversed(ast.parse(source).body):
        begin, end = node.lineno - 1, node.end_lineno
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            lines[begin:end] = []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hmoe":
            assert node.module is not None
            needed.add(node.module)
            names = ", ".join(
                alias.name if alias.asname is None else f"{alias.name} as {alias.asname}" for alias in node.names
            )
            lines[begin:end] = [f"from .{_flat(node.module)} import {names}\n"]
    return "".join(lines), needed


def _flat(module: str) -> str:
    return _NAMES.get(module) or module.replace(".", "_")
