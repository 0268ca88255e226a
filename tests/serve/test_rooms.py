"""The rooms of serve keep apart: the engine and the terminal know nothing of HTTP, and the engine nothing of either."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVE = Path(__file__).parents[2] / "src" / "hmoe" / "serve"
HTTP_LIBRARIES = ("fastapi", "starlette", "uvicorn", "h11")
FORBIDDEN = {
    "engine": (*HTTP_LIBRARIES, "hmoe.serve.http", "hmoe.serve.terminal", "hmoe.serve.chat_prompt"),
    "terminal": (*HTTP_LIBRARIES, "hmoe.serve.http"),
    "http": ("hmoe.serve.terminal",),
}


def imported_modules(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(room: str, code: str) -> list[str]:
    return [
        module
        for module in imported_modules(code)
        if any(module == name or module.startswith(name + ".") for name in FORBIDDEN[room])
    ]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_file_of_a_room_imports_what_it_must_not_know(room: str) -> None:
    files = sorted((SERVE / room).rglob("*.py"))
    assert len(files) > 1
    assert [(path.name, forbidden_imports(room, path.read_text())) for path in files] == [
        (path.name, []) for path in files
    ]


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("engine", "from fastapi import FastAPI"),
        ("engine", "def f():\n    import uvicorn.config"),
        ("engine", "from hmoe.serve.http.http_error import Refusal"),
        ("engine", "from hmoe.serve import terminal"),
        ("terminal", "import starlette"),
        ("terminal", "from hmoe.serve.http import service"),
        ("http", "from hmoe.serve.terminal.chat_session import Chat"),
    ],
)
def test_the_guard_of_the_rooms_can_fail(room: str, code: str) -> None:
    assert forbidden_imports(room, code) != []
    assert forbidden_imports(room, "import torch\nfrom hmoe.serve.engine.types import Ask") == []
