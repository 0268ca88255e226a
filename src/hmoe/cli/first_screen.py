"""The first screen: what `hmoe` alone prints, every verb on a line of its own, in the order of use."""

import textwrap
from collections.abc import Iterator
from typing import Any

import typer

# A group is left out while none of its verbs is registered; a verb that is in none of them is in the last, "more".
GROUPS = {
    "start": ("info", "presets", "config", "plan"),
    "data": ("data corpus", "data prepare", "data benchmarks"),
    "train": ("train",),
    "look": ("inspect", "report", "eval", "generate", "chat"),
    "compare": ("compare", "sweep"),
    "change": ("import", "export", "upcycle", "finetune"),
    "use": ("serve",),
    "measure": ("bench",),
}
EXAMPLES = {
    "hmoe train tiny": "a first run in seconds; hmoe VERB -h explains a verb",
}
_TITLE = "Usage: hmoe VERB ...   Language models whose experts differ in size."


def render_first_screen(command: Any, width: int, has_colour: bool) -> str:
    """Return the first screen: no line longer than `width`, and none cut.

    Args:
        command: the command that has all verbs.
        width: of a line, in characters.
        has_colour: whether headings and verbs are coloured.
    """
    groups = [(heading, verb) for heading, verbs in _list_groups(command) for verb in verbs.items()]
    sizes = max(len(heading) for heading, _ in groups), max(len(name) for _, (name, _) in groups)
    lines, last = textwrap.wrap(_TITLE, width), ""
    for heading, (name, text) in groups:
        shown = "" if heading == last else heading
        last = heading
        cells = [shown.ljust(sizes[0]), name.ljust(sizes[1])]
        room = max(width - sum(sizes) - 4, 20)
        described = textwrap.wrap(_choose_text(text, room), room)
        margin = " " * (sum(sizes) + 4)
        if has_colour:
            cells = [typer.style(cells[0], fg="cyan", bold=True), typer.style(cells[1], bold=True)]
        lines += [f"{cells[0]}  {cells[1]}  {described[0]}", *(margin + rest for rest in described[1:])]
    size = max(map(len, EXAMPLES))
    examples = [f"{example.ljust(size)}  {text}" for example, text in EXAMPLES.items()]
    lines += [line for example in examples for line in textwrap.wrap(example, width)]
    return "\n".join(lines)


def _choose_text(text: str, room: int) -> str:
    """Return as many sentences as have room on one line, but at least the first."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    chosen = paragraphs[0]
    for paragraph in paragraphs[1:]:
        if len(chosen) + 1 + len(paragraph) > room:
            break
        chosen += f" {paragraph}"
    return chosen


def _list_groups(command: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (heading, text by verb) of every group that has a verb."""
    verbs = dict(_list_verbs(command))
    first_words = {verb.split()[0] for group in GROUPS.values() for verb in group}
    others = tuple(verb for verb in verbs if verb.split()[0] not in first_words)
    for heading, names in (*GROUPS.items(), ("more", others)):
        texts = {name: verbs[name] for name in names if name in verbs}
        if texts:
            yield heading, texts


def _list_verbs(command: Any) -> Iterator[tuple[str, str]]:
    """Yield (words, text) of every verb, and of every group of verbs."""
    for name, child in command.commands.items():
        yield name, child.help or ""
        for own, grandchild in getattr(child, "commands", {}).items():
            yield f"{name} {own}", grandchild.help or ""
