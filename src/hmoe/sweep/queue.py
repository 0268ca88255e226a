"""The queue of a sweep: an idle place takes the next run whose source is finished, until all are in the table."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.config.run import RunConfig
from hmoe.data.open import open_data
from hmoe.errors import ConfigError, HMoEError
from hmoe.runs.summary import RunSummary
from hmoe.sweep.folder import SweepFolder
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.process import FINAL_CODES, Place, RunProcess, RunSource
from hmoe.sweep.rows import SweepRow, make_rows, make_summary, read_rows, write_rows
from hmoe.sweep.runs import PlannedRun, hash_recipe, list_planned_runs, make_run_config

_POLL_SECONDS = 0.2
_STOP_SECONDS = 120.0  # that a child may take to save
_MOST_STARTS = 3  # of a run whose process ends by something outside it
UNFINISHED, FAILED = (
    "unfinished",
    "failed",
)  # how a status begins; an unfinished run is tried again by the next sweep


@dataclass
class SweepState:
    """Where a sweep stands.

    Attributes:
        runs: all, in the order of the plan.
        rows: of each run that is finished or has failed, by its name.
        running: children by the name of their run.
        ended: names of the runs whose rows came from this process, the newest last.
    """

    runs: list[PlannedRun]
    rows: dict[str, list[SweepRow]]
    running: dict[str, RunProcess] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        """Runs that ended before their budget."""
        return sum(not rows[0].is_finished for rows in self.rows.values())

    @property
    def waiting(self) -> list[PlannedRun]:
        """Runs that have not begun in this process, in order."""
        return [run for run in self.runs if run.name not in self.rows and run.name not in self.running]

    def list_rows(self) -> list[SweepRow]:
        """Return all rows in the order of the plan, whatever ended first."""
        return [row for run in self.runs for row in self.rows.get(run.name, ())]


class SweepQueue:
    """Trains what a plan says and the table does not hold yet.

    Args:
        plan: of the sweep.
        folder: locked.
        places: where children compute, one at a time in each.
        machine: name of this machine for the table.
        commit: of this code.
        retry: train runs again that have failed.

    Raises:
        ConfigError: if the table holds rows of other recipes.
    """

    def __init__(
        self,
        plan: SweepPlan,
        folder: SweepFolder,
        places: Sequence[Place],
        machine: str,
        commit: str,
        retry: bool = False,
    ) -> None:
        self.plan, self.folder, self.places = plan, folder, places
        self._machine, self._commit = machine, commit
        self._starts: dict[str, int] = {}
        self._train_tokens: dict[str, int] = {}
        self.state = SweepState(list_planned_runs(plan), {})
        self.summaries: dict[str, RunSummary] = {}
        self._other_rows = self._take_rows(read_rows(folder.rows), retry)

    def run(self, show: Callable[[SweepState], None], say: Callable[[str], None] = lambda line: None) -> None:
        """Train until nothing is left to train.

        Args:
            show: told where the sweep stands, several times a second.
            say: called with a line when children are waited for.
        """
        self._check_data()
        try:
            while self.state.running or self._list_ready():
                self._start_ready()
                show(self.state)
                time.sleep(_POLL_SECONDS)
                self._collect()
            self._fail_orphans()
            show(self.state)
        finally:
            self._stop_all(say)

    def make_config(self, run: PlannedRun) -> RunConfig:
        """Return the recipe of a run; a control's source must be finished."""
        return make_run_config(self.plan, run, self.summaries)

    def _take_rows(self, rows: Sequence[SweepRow], retry: bool) -> list[SweepRow]:
        """Take over what the table holds of this plan; return the rows of seeds and groups that are not in it."""
        by_run: dict[str, list[SweepRow]] = {}
        for row in rows:
            by_run.setdefault(row.run, []).append(row)
        # Rows of sources are not enough where another run is still to begin with their weights.
        needed = {
            run.source
            for run in self.state.runs
            if run.group.upcycled_from
            and not (run.name in by_run and self._is_settled(run, by_run[run.name], retry))
        }
        for run in self.state.runs:
            own = by_run.pop(run.name, [])
            is_lost = run.name in needed and not list_checkpoint_steps(self.folder.get_run(run.name))
            if own and not is_lost and self._is_settled(run, own, retry):
                self._take_run(run, own)
        return [row for own in by_run.values() for row in own]

    def _is_settled(self, run: PlannedRun, rows: Sequence[SweepRow], retry: bool) -> bool:
        """Return whether rows stand for a run that is not trained again."""
        if not rows[0].is_finished:
            return rows[0].status.startswith(FAILED) and not retry
        # A control is of its source: where that is trained again, so is the control.
        return run.group.control_of is None or run.source in self.summaries

    def _take_run(self, run: PlannedRun, rows: list[SweepRow]) -> None:
        self.state.rows[run.name] = rows
        if rows[0].is_finished:
            config = self.make_config(run)
            check_rows(rows, config, self.plan.budgets, str(self.folder.rows))
            self.summaries[run.name] = make_summary(rows[-1], config, self.folder.get_run(run.name))

    def _list_ready(self) -> list[PlannedRun]:
        """Return the runs that wait for nothing, in the order of the plan."""
        return [run for run in self.state.waiting if run.source is None or run.source in self.summaries]

    def _start_ready(self) -> None:
        busy = {child.place.index for child in self.state.running.values()}
        free = [place for place in self.places if place.index not in busy]
        for place, run in zip(free, self._list_ready(), strict=False):
            try:
                config = self.make_config(run)
                self._open_data(config)
            except HMoEError as error:
                self._write([self._make_row(run, None, f"{FAILED}: {error}")])
                continue
            self._starts[run.name] = self._starts.get(run.name, 0) + 1
            self.state.running[run.name] = RunProcess(
                config,
                self.folder.get_run(run.name),
                self.folder.get_log(run.name),
                place,
                self._find_source(run),
            )

    def _find_source(self, run: PlannedRun) -> RunSource | None:
        if run.source is None or run.group.upcycled_from is None:
            return None
        return RunSource(self.folder.get_run(run.source), run.group.measured_widths)

    def _collect(self) -> None:
        """Write the rows of children that have ended."""
        by_name = {run.name: run for run in self.state.runs}
        for name, child in list(self.state.running.items()):
            code = child.poll()
            if code is None:
                continue
            del self.state.running[name]
            if code == 0 and child.is_finished():
                self._write(self._measure(by_name[name], child.config))
            elif code in FINAL_CODES:
                # Up to the first ";": what follows tells of the folder, which a run that was interrupted has otherwise.
                reason = child.read_last_line().partition(";")[0].replace(f"{child.run}: ", "")
                self._write([self._make_row(by_name[name], child.config, f"{FAILED}: {reason}")])
            elif self._starts[name] >= _MOST_STARTS:
                reason = child.read_last_line() if code > 0 else f"ended by signal {-code}"
                status = f"{UNFINISHED}: {reason}, {_MOST_STARTS} times"
                self._write([self._make_row(by_name[name], child.config, status)])
            # Else it was ended by something outside it: it goes on from its newest checkpoint.

    def _measure(self, run: PlannedRun, config: RunConfig) -> list[SweepRow]:
        template, folder = self._make_row(run, config, ""), self.folder.get_run(run.name)
        try:
            rows = make_rows(template, folder, config, self.plan.budgets, self._open_data(config))
        except HMoEError as error:
            reason = str(error).replace(f"{folder}: ", "")
            return [self._make_row(run, config, f"{FAILED}: {reason}")]
        self.summaries[run.name] = make_summary(rows[-1], config, folder)
        return rows

    def _make_row(self, run: PlannedRun, config: RunConfig | None, status: str) -> SweepRow:
        group = run.group
        recipe = "" if config is None else hash_recipe(config)
        return SweepRow(
            run=run.name,
            group=group.name,
            family=group.curve,
            size=group.size,
            seed=run.seed,
            recipe=recipe,
            status=" ".join(status.split()),
            machine=self._machine,
            commit=self._commit,
        )

    def _write(self, rows: list[SweepRow]) -> None:
        self.state.rows[rows[0].run] = rows
        self.state.ended.append(rows[0].run)
        write_rows(self.folder.rows, [*self.state.list_rows(), *self._other_rows])

    def _open_data(self, config: RunConfig) -> int:
        """Return the training tokens of a recipe's data; raise DataError before a child is started in vain."""
        key = f"{config.data.path} {config.corpus_tokenizer}"
        if key not in self._train_tokens:
            self._train_tokens[key] = open_data(config).tokens_of("train")
        return self._train_tokens[key]

    def _check_data(self) -> None:
        """Raise ConfigError if rows of the table are of other data than the runs that are left would be."""
        rows = [row for row in self.state.list_rows() if row.is_finished]
        for run in self.state.waiting:
            known = {row.data for row in rows if row.group == run.group.name}
            if run.group.recipe is None or not known:
                continue
            config = self.make_config(run)
            own = "corpus" if config.data.path == "corpus" else open_data(config).fingerprint
            if own not in known:
                others = ", ".join(sorted(str(data)[:12] for data in known))
                raise ConfigError(
                    f"data.path = {config.data.path}: its fingerprint is {own[:12]}, rows of {self.folder.rows} are of "
                    f"{others}; choose that data, or another table"
                )

    def _fail_orphans(self) -> None:
        """Write a row for each run whose source did not finish; one that failed for good fails them too."""
        for run in self.state.waiting:
            source = self.state.rows.get(run.source or "")
            kind = FAILED if source and source[0].status.startswith(FAILED) else UNFINISHED
            self._write([self._make_row(run, None, f"{kind}: its source {run.source} did not finish")])

    def _stop_all(self, say: Callable[[str], None]) -> None:
        if self.state.running:
            count = len(self.state.running)
            say(
                f"{count} {'run saves and ends' if count == 1 else 'runs save and end'}; the same command goes on"
            )
        for child in self.state.running.values():
            child.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self.state.running.values():
            child.wait(max(0.0, deadline - time.monotonic()))


def check_rows(rows: Sequence[SweepRow], config: RunConfig, budgets: Sequence[float], where: str) -> None:
    """Raise ConfigError if the rows of a finished run are of another recipe than the plan's, or not all there."""
    recipe = hash_recipe(config)
    for row in rows:
        if row.recipe != recipe:
            raise ConfigError(
                f"{where}: its row of {row.run} is of another recipe ({row.recipe}, the plan's is {recipe}); choose "
                "another folder"
            )
    points: list[float | None] = [*sorted(budgets)] or [None]
    if [row.budget for row in rows] != points or not all(row.is_finished for row in rows):
        raise ConfigError(f"{where}: its rows of {rows[0].run} are not one for each budget; remove them")
