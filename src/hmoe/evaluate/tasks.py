"""Find benchmark tasks by name: those of a folder of `hmoe data benchmarks`, and the harness's own."""

import contextlib
import difflib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.data.benchmark_splits import (
    BROUGHT_TASKS,
    PAPER_TASKS,
    RECTIFY_TASKS,
    BenchmarkGroup,
    BenchmarkTask,
)
from hmoe.data.benchmarks import Benchmarks, open_benchmarks
from hmoe.errors import ConfigError, DataError, make_missing_extra_error

ALL = "all"
_PAPER = [task.name for task in PAPER_TASKS]
# Tasks that a folder can hold, for where there is no network.
_HELPED = {*_PAPER, *BROUGHT_TASKS, *(task.name for task in RECTIFY_TASKS), "mmlu"}


@dataclass(frozen=True)
class TaskSelection:
    """Tasks that exist, in the order asked for, and the folder that holds some of them.

    Attributes:
        names: names of tasks and groups.
        benchmarks: the folder; None: every task is the harness's own.
    """

    names: tuple[str, ...]
    benchmarks: Benchmarks | None

    def local(self, name: str) -> BenchmarkTask | BenchmarkGroup | None:
        """Return the task of the benchmarks folder; None for one of the harness's own."""
        return self.benchmarks.tasks.get(name) if self.benchmarks else None

    def digest(self, name: str) -> str | None:
        """Return a SHA-256 of the data of a task in the folder; None for one of the harness's own."""
        task = self.local(name)
        return self.benchmarks.digest(task) if task and self.benchmarks else None

    def load(self, name: str) -> dict[str, Any]:
        """Return the harness's task objects, as its `evaluate` wants them.

        Raises:
            DataError: if the harness cannot load the task.
        """
        task = self.local(name)
        manager = _make_manager(self.benchmarks.folder) if task and self.benchmarks else _make_manager(None)
        try:
            loaded: dict[str, Any] = manager.load([task.local if task else name])
        except Exception as error:  # whatever a task file, a hub or a network raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            hint = "" if task else _hint(name)
            raise DataError(
                f"{name}: the harness cannot load it ({reason}){hint}",
                argument="benchmarks" if hint else None,
            ) from None
        return loaded


def select_tasks(
    tasks: Sequence[str], benchmarks: Path | None, say: Callable[[str], None] = lambda line: None
) -> TaskSelection:
    """Check task names and say where each task comes from.

    Args:
        tasks: names; `all` are the paper's six and ARC-Challenge.
        benchmarks: folder of `hmoe data benchmarks`; names that it lacks are the harness's own.
        say: called with a line before a look-up that takes long.

    Raises:
        ConfigError: for an unknown task, a missing [eval] extra, or a folder that would not be used.
        DataError: if the folder is not one of `hmoe data benchmarks`, or has changed.
    """
    if not tasks:
        raise ConfigError(f"no tasks; name some of {', '.join([*_PAPER, ALL])}")
    _require_harness()
    opened = open_benchmarks(benchmarks) if benchmarks else None
    names = tuple(dict.fromkeys(task for name in tasks for task in (_PAPER if name == ALL else [name])))
    held = opened.tasks if opened else {}
    if opened and (lacking := [name for name in names if name in BROUGHT_TASKS and name not in held]):
        raise ConfigError(
            f"task {lacking[0]}: not in benchmarks = {benchmarks}{_hint(lacking[0])}; or leave `benchmarks` out",
            argument="benchmarks",
        )
    if opened and not any(name in held for name in names):
        (nearest,) = difflib.get_close_matches(names[0], [*held, ALL], 1, 0.0)
        raise ConfigError(
            f"benchmarks = {benchmarks} has no effect: the folder holds none of {', '.join(names)}; "
            f"nearest is {nearest}",
            argument="benchmarks",
        )
    others = [name for name in names if name not in held]
    if others:
        say(f"looking up {', '.join(others)} among the harness's own tasks")
        with silence_harness():
            known = _make_manager(None).all_tasks
        for name in others:
            if name not in known:
                near = difflib.get_close_matches(name, [*held, ALL, *known], 1, 0.0)
                raise ConfigError(f"task {name}: unknown to lm-evaluation-harness; nearest is {near[0]}")
    return TaskSelection(names, opened)


def _hint(name: str) -> str:
    """Say what helps where there is no network; "" for tasks that no folder can hold."""
    if name not in _HELPED:
        return ""
    file = f" with a file for {name}" if name in BROUGHT_TASKS else ""
    return f"; without a network: `hmoe data benchmarks DIR`{file}, then benchmarks = DIR"


@functools.lru_cache(maxsize=2)  # one of the folder and one of the harness's own
def _make_manager(folder: Path | None) -> Any:
    """Make the harness's index of a folder, or of all its own tasks, which takes 10 seconds and more."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - optional extra

    return TaskManager(include_path=str(folder), include_defaults=False) if folder else TaskManager()


def _require_harness() -> None:
    try:
        import datasets  # noqa: F401, PLC0415 - optional extra
        import lm_eval  # noqa: F401, PLC0415
    except ImportError:
        raise make_missing_extra_error("benchmark tasks", "eval") from None


@contextlib.contextmanager
def silence_harness() -> Iterator[None]:
    """Turn off the harness's own bars and notes, because ours say what there is to say."""
    import datasets  # noqa: PLC0415 - optional extra
    from lm_eval.api import task  # noqa: PLC0415

    # The harness has no option for its bars: its module's own `tqdm` is replaced, and put back.
    logger = logging.getLogger("lm_eval")
    level, bars, tqdm = logger.level, datasets.is_progress_bar_enabled(), task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task.tqdm = functools.partial(tqdm, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        task.tqdm = tqdm
        if bars:
            datasets.enable_progress_bars()
