"""What the README and the guides say is run, or compared with the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hmoe.cli.main import app
from hmoe.config import recipes
from tests.repo.pages import list_blocks, list_commands, list_files, run_commands

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GUIDES = sorted((ROOT / "docs" / "guides").iterdir())
TEXTS = [README, *(page.read_text() for page in GUIDES)]


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
        r"^\s*(?:\.venv/bin/)?hmoe ([^#\n]*)", "\n".join(list_blocks(text, "sh")), re.MULTILINE
    ):
        words = line.split()
        verb = " ".join(words[:2]) if words[0] in ("data", "bench", "sweep") else words[0]
        wrong += [verb] * (verb not in known)
        wrong += [
            w
            for w in words
            if w.startswith("--") and "." not in w and w.split("=")[0] not in known.get(verb, set())
        ]
    return wrong


def test_the_first_block_holds_exactly_the_two_commands() -> None:
    assert len(list_blocks(README, "sh")[0].splitlines()) == 2
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in list_blocks(README, "sh")[0].splitlines():
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


def test_every_verb_stands_in_the_readme() -> None:
    """`hmoe presets`, one of them, lists the presets; kinds of sweeps stand in the guide that it names."""
    sweeps = (ROOT / "docs" / "guides" / "sweeps.md").read_text()
    for verb in verbs():
        text, name = (sweeps, verb) if verb.startswith("sweep ") else (README, verb)
        assert f"hmoe {name}" in text, verb
    assert "hmoe sweep" in README


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    tree = re.search(r"```text\nsrc/hmoe/\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    named = set(re.findall(r"^  ([\w.]+)/? ", tree[1], re.MULTILINE))
    source = ROOT / "src" / "hmoe"
    there = {p.name for p in source.iterdir() if not p.name.startswith("__") and p.name != "py.typed"}
    assert named == there


@pytest.mark.parametrize(
    "page", [p for p in PAGES if list_blocks(p.read_text(), "python")], ids=lambda p: p.stem
)
def test_python_snippets_run(page: Path, tmp_path: Path, command_path: str) -> None:
    files = list_files(page.read_text()).values()  # run by the page's own commands
    code = "\n".join(block for block in list_blocks(page.read_text(), "python") if block not in files)
    between_libraries = ["-W", "ignore::FutureWarning"]  # peft calls what transformers has renamed
    run_python(["-W", "error", *between_libraries, "-c", code], tmp_path, command_path)


def run_python(words: list[str], folder: Path, path: str) -> None:
    subprocess.run(["python", *words], check=True, cwd=folder, env={**os.environ, "PATH": path})


def test_a_snippet_that_fails_or_warns_is_seen(tmp_path: Path, command_path: str) -> None:
    warning = "import warnings; warnings.warn('old', {})"
    run_python(["-W", "error", "-c", "assert __name__ == '__main__'"], tmp_path, command_path)
    run_python(
        ["-W", "error", "-W", "ignore::FutureWarning", "-c", warning.format("FutureWarning")],
        tmp_path,
        command_path,
    )
    for code in ("assert False", warning.format("UserWarning")):
        with pytest.raises(subprocess.CalledProcessError):
            run_python(["-W", "error", "-c", code], tmp_path, command_path)


def list_guides() -> list[Path]:
    """The guides in the README's order."""
    links = re.findall(r"\]\((docs/guides/[\w-]+\.md)\)", README)
    return [ROOT / link for link in dict.fromkeys(links)]


def test_every_guide_stands_in_the_readme() -> None:
    assert set(list_guides()) == set((ROOT / "docs" / "guides").iterdir())


def test_every_page_with_commands_is_a_guide() -> None:
    pages = {page for page in PAGES if list_commands(page.read_text())}
    assert pages <= set(list_guides())


def test_the_readme_and_the_guides_write_no_folder_twice() -> None:
    """Whoever has run the README's commands can run the guides' in the same folder."""
    written = [
        set(re.findall(r"\b(?:runs|hf|data)/[\w-]+", "\n".join(list_blocks(text, "sh")))) for text in TEXTS
    ]
    assert written[0] & set().union(*written[1:]) <= {"runs/quickstart"}


def test_a_reader_can_follow_the_guides_one_after_another(tmp_path: Path, command_path: str) -> None:
    """In one folder, in the README's order, so that what one guide leaves is what the next one meets."""
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "one.txt").write_text("It was a bright cold day in the village. " * 400)
    for page in list_guides():
        if page.stem == "troubleshooting":  # has a folder and a test of its own
            continue
        text = page.read_text()
        for name, body in list_files(text).items():
            (tmp_path / name).write_text(body)
        for block in list_commands(text):
            run_commands(page, block, tmp_path, command_path)


def test_the_reference_is_up_to_date() -> None:
    import runpy

    pytest.importorskip("scipy")  # without it answers of sweeps say less
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, page in generate["PAGES"].items():
        assert (ROOT / "docs" / name).read_text() == page(), f"{name}: run `make docs`"


def test_python_snippets_of_the_readme_run() -> None:
    for code in list_blocks(README, "python"):
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
