"""The folder of a sweep: its plan, its run folders, its table; one process holds its lock. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from hmoe.errors import ConfigError, RunBusyError
from hmoe.storage import lock_file, write_atomic
from hmoe.sweep.plan import PLAN, SweepPlan, dump_plan, read_plan
from hmoe.sweep.rows import ROWS

COSTS = "costs.json"
_OWN = {PLAN, ROWS, COSTS, "runs", "logs", ".lock"}


class SweepFolder:
    """A sweep folder, locked unless it can only be read, which holds

        sweep.yaml   the plan
        runs/        a run folder for each run
        logs/        what each run said
        costs.json   seconds of a step of each recipe
        rows.csv     the table, of which it goes on where the run folders are not at hand

    Args:
        path: of the folder, made if it is not there.

    Raises:
        RunBusyError: if another process works in it.
        ConfigError: if it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, path / ROWS
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: is a file; choose a folder", argument="out")
        if path.is_dir() and not (path / PLAN).is_file():
            others = sorted(entry.name for entry in path.iterdir() if entry.name not in _OWN)
            if others:
                raise ConfigError(
                    f"{path}: holds no sweep, but {others[0]}; choose another folder", argument="out"
                )
        self._lock: TextIO | None = None
        self._fault: str | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            # What is to be read only, such as published results, prints its table all the same.
            self._fault = error.strerror or str(error)
            if not (path / PLAN).is_file():
                self.check_writable()
        if self._lock is not None and not lock_file(self._lock):
            self._lock.close()
            raise RunBusyError(f"{path}: another process is running this sweep")

    def __enter__(self) -> "SweepFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def check_writable(self) -> None:
        """Raise ConfigError if nothing can be kept in this folder."""
        if self._fault is not None:
            raise ConfigError(f"{self.path}: cannot be written: {self._fault}", argument="out")

    def get_run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.path / "runs" / name

    def get_log(self, name: str) -> Path:
        """Return the file that holds what a run said."""
        return self.path / "logs" / f"{name}.log"

    def bind_plan(self, plan: SweepPlan, write: bool = True) -> SweepPlan:
        """Keep the plan of a new folder, or check that it is that of the folder; seeds may have been added.

        Args:
            plan: of the sweep.
            write: keep it; otherwise it is only compared.

        Returns:
            The plan, with all seeds of both.

        Raises:
            ConfigError: naming what differs.
        """
        file = self.path / PLAN
        if file.is_file():
            old = read_plan(file)
            check_same_plan(old, plan, file)
            plan = plan.model_copy(update={"seeds": _join_seeds(old.seeds, plan.seeds)})
            if plan == old:
                return old
        if write:
            self.check_writable()
            write_atomic(file, dump_plan(plan, self.path).encode())
        return plan


def add_seeds(plan: SweepPlan, count: int) -> SweepPlan:
    """Return a plan with so many seeds more, the next ones."""
    first = max(plan.seeds) + 1
    return plan.model_copy(update={"seeds": (*plan.seeds, *range(first, first + count))})


def _join_seeds(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def check_same_plan(old: SweepPlan, new: SweepPlan, file: Path) -> None:
    """Raise ConfigError naming what differs between the plan of a file and a new one; seeds may."""
    for name in SweepPlan.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name in ("seeds", "groups") or before == after:
            continue
        if name == "overrides":
            _refuse_overrides(before, after, file)
        raise ConfigError(f"{name} = {after}: is {before} in {file}; choose another folder")
    groups = {group.name: group for group in old.groups}
    for group in new.groups:
        if group.name not in groups:
            raise ConfigError(f"group {group.name}: is not in {file}; choose another folder")
        if group != groups[group.name]:
            raise ConfigError(f"group {group.name}: has another recipe in {file}; choose another folder")
    lost = groups.keys() - {group.name for group in new.groups}
    if lost:
        raise ConfigError(f"group {min(lost)} of {file} is not in this sweep; choose another folder")


def _refuse_overrides(before: Sequence[str], after: Sequence[str], file: Path) -> None:
    """Raise ConfigError naming the first override that only one of two plans has, or that they have another order."""
    for word in (*after, *before):
        if after.count(word) != before.count(word):
            where = "has" if before.count(word) > after.count(word) else "does not have"
            raise ConfigError(f"{word}: {file} {where} this override; choose another folder")
    raise ConfigError(
        f"{after[0]}: {file} has the same overrides in another order, of which the last one of a key counts; give them "
        f"as there ({' '.join(before)}), or choose another folder"
    )
