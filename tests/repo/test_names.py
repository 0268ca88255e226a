"""Sizes, names and words are guarded, and that nothing imports in a circle; each guard has a case in which it fails."""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from hmoe.specs.routers import ROUTERS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "hmoe"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    ".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES
}
MOST_LINES, MOST_FUNCTION_LINES, WIDEST = 300, 40, 120
LONG_FUNCTIONS = {  # longer than 40 lines without their docstring, and why
    "backward.py:down_backward_kernel": "a Triton kernel names every tensor and size in its signature",
    "backward.py:weight_kernel": "the same",
    "forward.py:up_kernel": "the same",
    "select.py:select_backward_kernel": "the same",
    "eval.py:evaluate_folder": "an option of a verb is an argument on a line of its own",
    "inspect.py:inspect_folder": "the same",
    "finetune.py:finetune_to_folder": "the same",
}
BANNED = {"found", "made", "one", "said", "theirs", "around", "beside", "number"}


def long_functions(name: str, code: str) -> list[str]:
    """Functions above the limit, docstrings not counted, as FILE:FUNCTION."""
    functions = [
        n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [f"{name}:{f.name}" for f in functions if count_lines(f) > MOST_FUNCTION_LINES]


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first, end = function.body[0], function.end_lineno
    assert end is not None
    assert first.end_lineno is not None
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return end - function.lineno + 1 - docstring


def public_definitions(codes: Iterable[str]) -> Counter[str]:
    """How many modules define each public function or class."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [{n.name for n in ast.parse(code).body if isinstance(n, kinds)} for code in codes]
    return Counter(name for module in names for name in module if not name.startswith("_"))


def banned_names(code: str) -> list[str]:
    """Variables, arguments and attributes that say nothing of what they hold."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    names += [n.arg for n in nodes if isinstance(n, ast.arg)]
    names += [n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    return [name for name in names if name in BANNED]


def questions_of_kind(code: str) -> list[str]:
    """Where code asks for the name or the type of a router, which its spec should answer."""
    kinds = {*ROUTERS, *(kind.__name__ for kind in ROUTERS.values())}
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Compare | ast.Call)]
    calls = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "isinstance"]
    compared = [part for n in nodes if isinstance(n, ast.Compare) for part in (n.left, *n.comparators)]
    words = [part.value for part in compared if isinstance(part, ast.Constant)]
    words += [getattr(part, "id", getattr(part, "attr", "")) for n in calls for part in ast.walk(n.args[1])]
    return [word for word in words if isinstance(word, str) and word in kinds]


def import_graph(codes: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere, for type checking too."""
    graph = {}
    for module, code in codes.items():
        imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom) and n.module]
        names = {
            f"{n.module}.{a.name}" if f"{n.module}.{a.name}" in codes else str(n.module)
            for n in imports
            for a in n.names
        }
        names |= {a.name for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import) for a in n.names}
        graph[module] = {name for name in names if name in codes and name not in (module, "hmoe")}
    return graph


def modules_in_circles(graph: Mapping[str, set[str]]) -> set[str]:
    """What is left when modules that import nothing, or that nothing imports, are taken away again and again."""
    left = {module: set(imports) for module, imports in graph.items()}
    while True:
        wanted = set().union(*left.values()) if left else set()
        idle = {module for module, imports in left.items() if not imports or module not in wanted}
        if not idle:
            return set(left)
        left = {module: imports - idle for module, imports in left.items() if module not in idle}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_functions_and_names_of_values(path: Path) -> None:
    code = path.read_text()
    assert code.count("\n") <= MOST_LINES
    assert [name for name in long_functions(path.name, code) if name not in LONG_FUNCTIONS] == []
    assert banned_names(code) == []
    assert [
        line for line in code.split("\n") if len(line) > WIDEST and path.name != "benchmark_task.py"
    ] == []


def test_nobody_asks_which_kind_a_router_is() -> None:
    """Its two files may; whoever else does would have to learn every kind from outside."""
    outside = [p for p in FILES if p.parent.name != "routers"]
    assert {p.name: q for p in outside if (q := questions_of_kind(p.read_text()))} == {}


def test_a_public_name_is_defined_once() -> None:
    assert [
        name for name, count in public_definitions(p.read_text() for p in FILES).items() if count > 1
    ] == []


def test_functions_say_what_they_do_in_two_words_or_more() -> None:
    names = [name for name in public_definitions(p.read_text() for p in FILES) if name[0].islower()]
    assert sum("_" not in name for name in names) < 0.2 * len(names)


def test_nothing_imports_in_a_circle() -> None:
    assert (
        modules_in_circles(import_graph({module: path.read_text() for module, path in MODULES.items()}))
        == set()
    )


def test_tests_have_the_names_of_their_modules() -> None:
    """tests/ROOM/test_X.py tests ROOM/X.py; tests of a room, a verb or a behaviour say so in a docstring."""
    rooms = {path.parent.name for path in FILES} | {"golden"}
    unnamed = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        room = path.relative_to(ROOT / "tests").parts[0]
        modules = {p.stem for p in FILES if p.relative_to(SOURCE).parts[0].removesuffix(".py") == room}
        is_named = any(path.stem.removeprefix("test_").startswith(name) for name in modules | rooms)
        if not is_named and ast.get_docstring(ast.parse(path.read_text())) is None:
            unnamed.append(str(path.relative_to(ROOT)))
    assert unnamed == []


def test_the_guards_can_fail() -> None:
    long = "def f():\n" + "    x = 1\n" * 41
    assert long_functions("a.py", long) == ["a.py:f"]
    assert long_functions("a.py", 'def f():\n    """' + "\n" * 50 + '"""\n    x = 1\n') == []
    assert public_definitions(["def f(): 0\ndef _g(): 0", "class f: 0\ndef _g(): 0"]) == {"f": 2}
    assert banned_names("found = 1\ndef f(one): self.made = 2\nnumber_of = found") == ["found", "one", "made"]
    assert modules_in_circles(
        import_graph({"a": "import b", "b": "from c import x", "c": "import a", "d": "import a"})
    ) == set("abc")
    assert modules_in_circles(import_graph({"a": "import b", "b": "", "d": "import a"})) == set()
    assert questions_of_kind('if a.name == "top_p" or isinstance(a, (int, TopK)): b != "top"') == [
        "top_p",
        "TopK",
    ]
    for name in LONG_FUNCTIONS:
        file, function = name.split(":")
        assert any(f"def {function}(" in p.read_text() for p in FILES if p.name == file), name
