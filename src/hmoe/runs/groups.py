"""Runs named on a command line or in a script -> groups of seeds of one recipe. No torch."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hmoe.config.run import RESUMABLE
from hmoe.errors import ConfigError
from hmoe.runs.config_binding import find_run_folder, is_run_folder
from hmoe.runs.summary import RunSummary, read_run_summary

BUDGETS = frozenset(f"train.{name}" for name in ("steps", "tokens", "flops", "seconds"))
# Change no number of a comparison: where things lie, what is logged, how memory is saved, and the seed itself.
_UNCOUNTED = RESUMABLE - BUDGETS - {"train.eval_sequences"} | {"train.activation_checkpointing", "seed"}
_SEED_WORDS = re.compile(r"(?:[-_.=/](?:seed|s))?[-_.=/]*$")


@dataclass(frozen=True)
class RunGroup:
    """Seeds of one recipe.

    Attributes:
        name: given, or of the folders.
        runs: one for each seed, in the order of seeds.
        words: under which they were named.
    """

    name: str
    runs: tuple[RunSummary, ...]
    words: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.config.seed for run in self.runs)


def read_run_groups(words: Sequence[str], say: Callable[[str], None] = lambda line: None) -> list[RunGroup]:
    """Read runs and group the seeds of each recipe.

    Args:
        words: each a run folder, a folder of run folders, or NAME=FOLDER, which names the group.
        say: called with what is left out of a folder of run folders.

    Returns:
        Groups in the order of the words, with different names.

    Raises:
        ConfigError: if a folder is neither, a run is given twice or has taken no step, runs under one name have
            different recipes, or a group holds a seed twice.
    """
    members: dict[tuple[str, str], list[RunSummary]] = {}
    sources: dict[tuple[str, str], list[str]] = {}
    paths: set[Path] = set()
    for word in words:
        name, path = _split_name(word)
        for summary in _read_runs(path, say):
            if summary.path.resolve() in paths:
                raise ConfigError(f"{summary.path}: is given twice")
            paths.add(summary.path.resolve())
            key = (name, repr(list_recipe_values(summary)))
            members.setdefault(key, []).append(summary)
            sources.setdefault(key, []).append(word.partition("=")[2] if name else word)
    _check_names(members)
    groups = [
        RunGroup(name, tuple(sorted(runs, key=lambda run: run.config.seed)), tuple(sources[name, recipe]))
        for (name, recipe), runs in members.items()
    ]
    for group in groups:
        _check_seeds(group)
    return _name_groups(groups)


def list_recipe_values(run: RunSummary) -> dict[str, Any]:
    """Return the values of a recipe's keys that runs of one recipe have in common: all but what changes no number.

    The data is its fingerprint, or its path where there is no checkpoint that knows it.
    """
    flat = _flatten(run.config.model_dump(mode="json"))
    values = {key: value for key, value in flat.items() if key not in _UNCOUNTED}
    return values | {"data": run.data or run.config.data.path}


def list_differing_keys(run: RunSummary, other: RunSummary) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which the recipes of two runs differ, with both values."""
    values, others = list_recipe_values(run), list_recipe_values(other)
    keys = sorted(key for key in values.keys() | others.keys() if values.get(key) != others.get(key))
    return {key: (values.get(key), others.get(key)) for key in keys}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _split_name(word: str) -> tuple[str, Path]:
    """Return (name, folder) of NAME=FOLDER; a folder that exists is never split."""
    name, equals, path = word.partition("=")
    if not word or (equals and not path):
        raise ConfigError(f"{word!r}: names no folder; must be a run folder, . for the current one")
    return (name, Path(path)) if equals and name and not os.path.lexists(word) else ("", Path(word))


def _read_runs(path: Path, say: Callable[[str], None]) -> list[RunSummary]:
    """Return the run that a path names, or those that lie in it and have taken a step."""
    own = find_run_folder(path)
    if own is not None:
        summary = read_run_summary(own)
        if summary.step == 0:
            raise ConfigError(f"{own}: has taken no training step yet")
        return [summary]
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    runs = [child for child in children if is_run_folder(child)]
    if not runs:
        what = "is a file" if path.exists() else "no such folder"
        what = "holds no run folder and is none" if path.is_dir() else what
        raise ConfigError(f"{path}: {what}; `hmoe train RECIPE` makes a run folder")
    for child in children:
        if child not in runs and any(map(is_run_folder, child.iterdir())):
            say(f"left out {child}: holds run folders of its own; name it too")
    summaries = [read_run_summary(run) for run in runs]
    for summary in summaries:
        if summary.step == 0:
            say(f"left out {summary.path}: has taken no training step yet")
    begun = [summary for summary in summaries if summary.step > 0]
    if not begun:
        raise ConfigError(f"{path}: none of its {len(runs)} runs has taken a training step yet")
    return begun


def _check_names(members: dict[tuple[str, str], list[RunSummary]]) -> None:
    """Raise ConfigError if runs under one name have different recipes, naming the first key that differs."""
    first: dict[str, RunSummary] = {}
    for (name, _), runs in members.items():
        other = first.setdefault(name, runs[0])
        if name and other is not runs[0]:
            key, (value, own) = next(iter(list_differing_keys(other, runs[0]).items()))
            raise ConfigError(
                f"{name}: its runs have different recipes: {key} is {value} in {other.path}, {own} in {runs[0].path}; "
                "give each recipe a name of its own"
            )


def _check_seeds(group: RunGroup) -> None:
    for run in group.runs:
        twice = [str(other.path) for other in group.runs if other.config.seed == run.config.seed]
        if len(twice) > 1:
            seed = run.config.seed
            raise ConfigError(
                f"{' and '.join(twice)}: the same recipe with the same seed {seed}; give one of them"
            )


def _name_groups(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Name those that have none by what their folders have in common, else by all; as far up as tells them apart."""
    names: list[str] = []
    for depth in range(1, 100):
        for find in (_find_common_name, _join_names):
            names = [group.name or find(group, depth) for group in groups]
            if len(set(names)) == len(names):
                return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]
    raise ConfigError(f"{', '.join(names)}: rows of one name; give names as NAME=FOLDER")


def _list_names(group: RunGroup, depth: int) -> list[str]:
    return [Path(*run.path.absolute().parts[-depth:]).as_posix() for run in group.runs]


def _join_names(group: RunGroup, depth: int) -> str:
    return "+".join(_list_names(group, depth))


def _find_common_name(group: RunGroup, depth: int) -> str:
    """Return what the names of the folders have in common before their seeds: tiny of tiny-0 and tiny-1."""
    names = _list_names(group, depth)
    if len(names) == 1:
        return names[0]
    stems = {name.removesuffix(str(seed)) for name, seed in zip(names, group.seeds, strict=True)}
    if len(stems) == 1:
        stem = _SEED_WORDS.sub("", stems.pop())
    else:
        # Up to the last separator: half a word or half a number is no name.
        common = os.path.commonprefix(names)  # noqa: RUF071 - of characters
        stem = re.sub(r"[^-_./=]*$", "", common).rstrip("-_./=")
    return stem or Path(*group.runs[0].path.absolute().parts[-depth - 1 : -1]).as_posix()
