"""Runs named on a command line or in a script -> groups of seeds of one recipe. No torch."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmoe.errors import ConfigError
from hmoe.runs.config_binding import is_run_folder
from hmoe.runs.summary import RunSummary, read_run_summary

# Change no number of a comparison: where and how often things are written, and the seed itself.
_APART = {
    "data": {"path", "verify"},
    "train": {
        "save_every", "keep", "log_every", "sample_every", "sample_prompt", "sample_tokens", "dead_after", "device",
        "eval_every", "activation_checkpointing",
    },
}  # fmt: skip


@dataclass(frozen=True)
class RunGroup:
    """Seeds of one recipe.

    Attributes:
        name: given, or of the folders.
        runs: one for each seed, in the order of seeds.
    """

    name: str
    runs: tuple[RunSummary, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.config.seed for run in self.runs)


def read_run_groups(words: Sequence[str]) -> list[RunGroup]:
    """Read runs and group the seeds of each recipe.

    Args:
        words: each a run folder, a folder of run folders, or NAME=FOLDER, which names the group.

    Returns:
        Groups in the order of the words.

    Raises:
        ConfigError: if a folder is neither, a run is given twice, runs under one name have different recipes, or a
            group holds a seed twice.
    """
    members: dict[tuple[str, str], list[RunSummary]] = {}
    paths: set[Path] = set()
    for word in words:
        name, path = _split_name(word)
        for run in _list_runs(path):
            if run.resolve() in paths:
                raise ConfigError(f"{run}: is given twice")
            paths.add(run.resolve())
            summary = read_run_summary(run)
            members.setdefault((name, _identify_recipe(summary)), []).append(summary)
    _check_names([name for name, _ in members if name])
    groups = [
        RunGroup(name, tuple(sorted(runs, key=lambda r: r.config.seed)))
        for (name, _), runs in members.items()
    ]
    named = _name_groups(groups)
    for group in named:
        _check_seeds(group)
    return named


def _split_name(word: str) -> tuple[str, Path]:
    """Return (name, folder) of NAME=FOLDER; a folder that exists is never split."""
    name, equals, path = word.partition("=")
    if equals and name and path and not os.path.lexists(word):
        return name, Path(path)
    return "", Path(word)


def _list_runs(path: Path) -> list[Path]:
    if is_run_folder(path):
        return [path]
    runs = sorted(child for child in path.iterdir() if is_run_folder(child)) if path.is_dir() else []
    if not runs:
        what = "holds no run folder and is none" if path.is_dir() else "no such folder"
        raise ConfigError(f"{path}: {what}; `hmoe train RECIPE` makes a run folder")
    return runs


def _identify_recipe(run: RunSummary) -> str:
    """Return what runs of one recipe have in common: all but the seed and what changes no number."""
    tree = run.config.model_dump(mode="json")
    del tree["seed"]
    for section, names in _APART.items():
        tree[section] = {name: value for name, value in tree[section].items() if name not in names}
    return repr((tree, run.data))


def _check_names(names: Sequence[str]) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(f"{repeated}: its runs have different recipes; give each recipe a name of its own")


def _check_seeds(group: RunGroup) -> None:
    for run in group.runs:
        twice = [str(other.path) for other in group.runs if other.config.seed == run.config.seed]
        if len(twice) > 1:
            raise ConfigError(
                f"{' and '.join(twice)}: the same recipe with the same seed {run.config.seed}; give one of them"
            )


def _name_groups(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Name those that have none: by what their folders' names have in common, as far up as tells them apart."""
    taken = {group.name for group in groups if group.name}
    depth, names = 1, [""]
    for depth in range(1, 20):
        names = [group.name or _find_common_name(group, depth) for group in groups]
        if len(set(names)) == len(names) and not taken & {
            n for n, g in zip(names, groups, strict=True) if not g.name
        }:
            break
    return [RunGroup(name, group.runs) for name, group in zip(names, groups, strict=True)]


def _find_common_name(group: RunGroup, depth: int) -> str:
    """Return the last parts of the folders' names, without what differs at their end: tiny of tiny-0 and tiny-1."""
    paths = [Path(*run.path.absolute().parts[-depth:]) for run in group.runs]
    if len(paths) == 1:
        return paths[0].as_posix()
    common = os.path.commonprefix([path.as_posix() for path in paths])  # noqa: RUF071 - of characters
    # Numbers of seeds are cut whole: 10 and 11 have a digit in common, which is no part of the name.
    name = re.sub(r"[-_./]*(?:seed)?[-_=]?\d*$", "", common)
    return name or Path(*group.runs[0].path.absolute().parts[-depth - 1 : -1]).as_posix()
