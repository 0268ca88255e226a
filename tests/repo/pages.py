"""Pages of commands as a reader meets them: blocks in order, the files they name, the output they promise."""

import itertools
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w.-]+\.(?:yaml|py))\n")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


class Commands(NamedTuple):
    """A ```sh block.

    Attributes:
        body: the commands.
        output: the ```text block right after it, which says what they print, or None. A first line `exit N` says
            with which code they end, otherwise 0.
        line: of the page, where the block begins.
    """

    body: str
    output: str | None
    line: int


def list_blocks(text: str, kind: str) -> list[str]:
    """Return the bodies of a page's code blocks of one language."""
    return [body for name, body in _BLOCK.findall(text) if name == kind]


def list_commands(text: str) -> list[Commands]:
    """Return the ```sh blocks of a page in order."""
    blocks = list(_BLOCK.finditer(text))
    commands = []
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block[1] != "sh":
            continue
        promised = following and following[1] == "text" and not text[block.end() : following.start()].strip()
        output = following[2] if following and promised else None
        commands.append(Commands(block[2], output, text.count("\n", 0, block.start()) + 1))
    return commands


def list_files(text: str) -> dict[str, str]:
    """Return the files that a page gives: YAML and Python blocks whose first line names one in a comment."""
    bodies = [*list_blocks(text, "yaml"), *list_blocks(text, "python")]
    return {match[1]: body for body in bodies if (match := _FILE.match(body))}


def compare_output(promised: str, printed: str) -> str:
    """Return the first promised line that was not printed, or nothing.

    Numbers match any number, and white space any other. `...` in a line stands for any text of it, a line of
    `...` for any lines; what is printed after the last promised line must be promised by such a line too.
    """
    printed = "".join(f"{' '.join(line.split())}\n" for line in printed.splitlines() if line.strip())
    lines = [line for line in promised.splitlines() if line.strip()]
    patterns = [r"(?:.*\n)*?" if line.strip() == "..." else _make_pattern(line) for line in lines]
    for count, line in enumerate(lines, 1):
        if not re.match("".join(patterns[:count]), printed):
            return line
    return "" if re.fullmatch("".join(patterns), printed) else "(the end)"


def run_commands(page: Path, commands: Commands, folder: Path, path: str) -> None:
    """Run a ```sh block in a folder with this PATH; its code and what it prints must be what its page promises."""
    result = subprocess.run(
        ["bash", "-euc", commands.body],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    place, output = f"{page.name}:{commands.line}", commands.output
    ended = re.match(r"exit (\d+)\n", output or "")
    code = int(ended[1]) if ended else 0
    shown = f"{commands.body}\n{result.stdout[-3000:]}"
    assert result.returncode == code, f"{place} ends with {result.returncode}, not {code}\n{shown}"
    fault = "" if output is None else compare_output(output[ended.end() if ended else 0 :], result.stdout)
    assert not fault, f"{place} promises, but does not print: {fault}\n{shown}"


def _make_pattern(line: str) -> str:
    """Return the pattern of one line: every number any number, `...` any text."""
    parts = [_NUMBER.sub("\0", part) for part in " ".join(line.split()).split("...")]
    return ".*".join(re.escape(part).replace("\0", _NUMBER.pattern) for part in parts) + "\n"
