"""What the README and the guides say is run, or compared with the code."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from hmoe.cli.main import app
from hmoe.config import recipes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, kind: str) -> list[str]:
    return [body for name, body in BLOCK.findall(text) if name == kind]


def verbs() -> dict[str, set[str]]:
    """Verb -> its flags."""
    found: dict[str, set[str]] = {}

    def walk(command: object, prefix: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{prefix} {name}".strip())
        if not getattr(command, "commands", {}):
            found[prefix] = {
                o for p in command.params for o in getattr(p, "opts", []) if o.startswith("--")
            } | {"--help"}  # type: ignore[attr-defined]

    walk(typer.main.get_command(app), "")
    return found


def unknown(text: str) -> list[str]:
    """`hmoe VERB --flag` in a text that the command line does not have."""
    known, wrong = verbs(), []
    for line in re.findall(
        r"^\s*(?:\.venv/bin/)?hmoe ([^#\n]*)", "\n".join(blocks(text, "sh")), re.MULTILINE
    ):
        words = line.split()
        verb = " ".join(words[:2]) if words[0] in ("data", "bench") else words[0]
        wrong += [verb] * (verb not in known)
        wrong += [
            w
            for w in words
            if w.startswith("--") and "." not in w and w.split("=")[0] not in known.get(verb, set())
        ]
    return wrong


def test_the_first_block_holds_exactly_the_two_commands() -> None:
    assert len(blocks(README, "sh")[0].splitlines()) == 2
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in blocks(README, "sh")[0].splitlines():
        assert line.removeprefix("make ") in targets


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_verbs_flags_presets_and_links_exist(page: Path) -> None:
    text = page.read_text()
    assert unknown(text) == []
    for name in re.findall(r"`((?:h?moe|dense|tiny|quickstart)-[\w.]+(?:-\w+)*|tiny|quickstart)`", text):
        assert name in recipes.list_presets(), name
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_the_guard_of_verbs_can_fail() -> None:
    assert unknown("```sh\nhmoe trian x\n```") == ["trian"]
    assert unknown("```sh\nhmoe train x --dry-runn\n```") == ["--dry-runn"]


def test_every_verb_and_every_preset_stand_in_the_readme() -> None:
    for verb in verbs():
        assert f"hmoe {verb}" in README, verb
    for preset in recipes.list_presets():
        family = re.sub(r"-(topk|topp|equal|dense|control)$", "", preset)
        assert family in README, preset


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    tree = re.search(r"```text\nsrc/hmoe/\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    named = set(re.findall(r"^  ([\w.]+)/? ", tree[1], re.MULTILINE))
    source = ROOT / "src" / "hmoe"
    there = {p.name for p in source.iterdir() if not p.name.startswith("__") and p.name != "py.typed"}
    assert named == there


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "python")], ids=lambda p: p.stem)
def test_python_snippets_run(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page.read_text(), "python"))
    between_libraries = ["-W", "ignore::FutureWarning"]  # peft calls what transformers has renamed
    subprocess.run([sys.executable, "-W", "error", *between_libraries, "-c", code], check=True, cwd=tmp_path)


@pytest.fixture(scope="session")
def commands() -> Iterator[Path]:
    """A folder with a `hmoe` that starts in no time and whose embedded corpus is short: see command_server.py."""
    with tempfile.TemporaryDirectory(prefix="hmoe-") as folder:
        words = [sys.executable, "-m", "tests.repo.command_server", folder]
        server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield Path(folder)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # what a failed test left, too
        server.communicate()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "sh")], ids=lambda p: p.stem)
def test_shell_snippets_run(page: Path, tmp_path: Path, commands: Path) -> None:
    """In a folder that holds the page's YAML files, each named in a comment in its first line."""
    for recipe in blocks(page.read_text(), "yaml"):
        name = re.match(r"# ([\w.-]+\.yaml)", recipe)
        if name:
            (tmp_path / name[1]).write_text(recipe)
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "one.txt").write_text("It was a bright cold day in the village. " * 1000)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in blocks(page.read_text(), "sh"):
        result = subprocess.run(
            ["bash", "-euc", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{block}\n{result.stdout[-1000:]}\n{result.stderr[-2000:]}"


def test_the_reference_is_up_to_date() -> None:
    import runpy

    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, page in generate["PAGES"].items():
        assert (ROOT / "docs" / "reference" / name).read_text() == page(), f"{name}: run `make docs`"


def test_python_snippets_of_the_readme_run() -> None:
    for code in blocks(README, "python"):
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_equation_table_names_things_that_exist() -> None:
    """docs/paper.md: every `module.function` and every test file it names."""
    import importlib

    text = (ROOT / "docs" / "paper.md").read_text()
    names = re.findall(r"`(hmoe(?:\.\w+)+)`", text)
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path


def test_the_project_speaks_of_itself_alone() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    forbidden = re.compile("/" + "work/|/" + "root/|" + "sub" + "agent", re.IGNORECASE)
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".json", "") and path.is_file():
            assert not forbidden.search(path.read_text(errors="ignore")), name
