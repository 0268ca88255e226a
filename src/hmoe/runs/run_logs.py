"""The recipe and the logs of a run folder, as whatever tells of the run reads them. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import read_newest_state
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.config_binding import CONFIG, is_run_folder, load_run_recipe
from hmoe.runs.log_rows import read_logs
from hmoe.runs.log_seals import check_seals


@dataclass(frozen=True)
class RunLogs:
    """What a run folder tells without its weights and its data.

    Attributes:
        config: the recipe.
        state: of the newest checkpoint, None before the first.
        rows: of metrics.jsonl, up to the newest checkpoint, or all where there is none: later ones are of weights that
            are lost.
        timing: the same of timing.jsonl.
        warnings: what a reader of the numbers should know, a sentence each.
    """

    config: RunConfig
    state: dict[str, Any] | None
    rows: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    warnings: list[str]


def read_run_logs(run: Path) -> RunLogs:
    """Read the recipe and the logs of a run folder.

    Raises:
        ConfigError: if it is no run folder.
        CheckpointError: naming a damaged line of a log.
    """
    if not is_run_folder(run):
        raise ConfigError(f"{run}: not a run folder, it has no {CONFIG}; `hmoe train RECIPE` makes one")
    warnings: list[str] = []
    state = read_newest_state(run)
    config = load_run_recipe(run, (), warnings.append)
    metrics, timing = read_logs(run, state["step"] if state else None)
    problem = check_seals(run, metrics, timing)[1]
    warnings += [problem] if problem else []
    return RunLogs(config, state, [row for _, row in metrics], [row for _, row in timing], warnings)
