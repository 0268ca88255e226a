"""Damage that is drawn, and what a user's error must look like."""

import contextlib
import io
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe import HMoEError
from hmoe.cli.main import run_command_line
from hmoe.errors import shorten_line
from tests.faults.campaign import check

_GIB = 1 << 30
# What a value may become that was read from a file: edges of ranges, other types, numbers that overflow.
NONSENSE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 257, 65536, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.0, 0.5, 1.5,
    -0.1, 1e-320,
    1e308, float("nan"), float("inf"), float("-inf"), "", "0", "1e3", ".nan", "null", "true", "\0", "a\nb", "\x1b[31m",
    "é" * 40, "x" * 3000, "../../x", "/dev/null", "top_p", "top_k", "cosine", [], [0], [1, 2, 3], [None],
    ["a"], [[[]]], {}, {"a": 1},
    {"name": "top_k"}, {"shape": "equal", "total": 64, "experts": 4},
)  # fmt: skip


def check_user_error(error: BaseException, words: str) -> None:
    """Check that an error is one for the user: of hmoe's tree, and one short line."""
    kind = type(error).__name__
    text = str(error)
    check(isinstance(error, HMoEError), f"{kind} ({text[:150]!r}) for {words}")
    is_line = "\n" not in text and 0 < len(text) < 600 and text == shorten_line(text)
    check(is_line, f"{kind} is no short line ({len(text)} characters: {text[:200]!r}) for {words}")


def show_input(value: Any) -> str:
    """Return an input as a reader can repeat it, cut to 200 characters."""
    try:
        return repr(value)[:200]
    except ValueError:  # an integer of more digits than Python prints
        return f"{type(value).__name__} that holds a number of thousands of digits"


def limit_memory(extra: int = 3 * _GIB) -> None:
    """Let this process take `extra` bytes more than now; what needs more fails instead of filling the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def call_command_line(words: list[str]) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and what it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = run_command_line(words)
    return code, output.getvalue()


def check_command_line(words: list[str], codes: set[int], what: str) -> int:
    """Run a command line; check that its exit code is one of `codes`, and that a user's error is one short line."""
    try:
        code, output = call_command_line(words)
    except BaseException as error:
        raise AssertionError(
            f"{type(error).__name__} ({str(error)[:200]!r}) leaves `hmoe {words[0]}` for {what}"
        ) from error
    check(code in codes, f"`hmoe {words[0]}` exits with {code}, says {output[-200:]!r} for {what}")
    check("Traceback" not in output, f"`hmoe {words[0]}` prints a traceback for {what}")
    if code:
        lines = [line for line in output.splitlines() if "error: " in line]
        check(
            len(lines) == 1 and len(lines[0]) < 700,
            f"`hmoe {words[0]}` ends with {output[-300:]!r} for {what}",
        )
    return code


def flip_bit(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Return content with one bit changed, and where."""
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {place} of {len(content)}"


def mutate_bytes(rng: random.Random, content: bytes, times: int = 3) -> bytes:
    """Return content with a few bytes changed, removed, inserted, doubled or exchanged."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, times)):
        place = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 1, 2, 4, 9, 40)), len(changed) - place)
        kind = rng.randrange(6)
        if kind == 0:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = rng.randbytes(rng.choice((1, 1, 2, 8)))
        elif kind == 3:
            changed[place:place] = changed[place : place + length]
        elif kind == 4:
            other = rng.randrange(len(changed) + 1)
            changed[other:other] = changed[place : place + length]
        else:
            changed[place:place] = rng.choice(_MARKS)
    return bytes(changed)


_MARKS = (
    b"\0", b"\xff", b"\xc3", b"\n", b"\r", b"\t", b"\"", b"{", b"}", b"[", b"]", b":", b",", b"&a ", b"*a",
    b"!!python/name:os.system ",
    b"- ", b"? ", b"| ", b"> ", b"# ", b"---\n", b"%", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"1e999", b"-",
    b"<<: ", b"0x", b"nan",
)  # fmt: skip


def list_places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys that lead to every value of a tree of mappings and lists, its own root left out."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    places = []
    for key, value in pairs:
        places += [(*place, key), *list_places(value, (*place, key))]
    return places


def mutate_tree(rng: random.Random, tree: Any, draw: Callable[[Any], Any]) -> str:
    """Change one value of a tree, remove it, rename it or double it; return what was done."""
    place = rng.choice(list_places(tree))
    node = tree
    for key in place[:-1]:
        node = node[key]
    key, kind = place[-1], rng.randrange(8)
    if kind == 0:
        del node[key]
        return f"{place} removed"
    if kind == 1 and isinstance(node, dict):
        name = rng.choice((f"{key}x", str(key)[:-1], str(key).upper(), "auto_map", ""))
        node[name] = node.pop(key)
        return f"{place} renamed to {name!r}"
    node[key] = draw(node[key])
    return f"{place} = {show_input(node[key])}"


def draw_like(rng: random.Random, old: Any) -> Any:
    """Return a value in place of another: often nearly the same, else nonsense."""
    if rng.random() < 0.4:
        return rng.choice(NONSENSE)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice(
            (old + 1, old - 1, old * 2, old // 2, -old, float(old), str(old), rng.randrange(300))
        )
    if isinstance(old, float):
        return rng.choice((old * 2, old / 2, -old, old + 1, str(old), rng.random()))
    if isinstance(old, str):
        return rng.choice(
            (
                old + "x",
                old[:-1],
                old.upper(),
                [old],
                f" {old}",
                rng.choice(("silu", "float16", "llama", "corpus")),
            )
        )
    if isinstance(old, list):
        return rng.choice((old + old, old[:-1], old[::-1], {str(i): value for i, value in enumerate(old)}))
    if isinstance(old, dict):
        return rng.choice(([], list(old), {**old, "more": 1}, {}))
    return rng.choice(NONSENSE)
