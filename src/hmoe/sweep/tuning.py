"""Which setting each family takes from a grid that is the same for all, by a rule that is the same. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hmoe.config.run import RunConfig
from hmoe.runs.summary import average_known
from hmoe.sweep.families import list_coefficients
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow

RATE = "optim.lr"
RULE = (
    "each family takes the setting of its smallest mean loss, everywhere; a control takes its source's learning rate "
    "and keeps the paper's load balance"
)


@dataclass(frozen=True)
class Trial:
    """One setting that a family was trained with, and what it reached.

    Attributes:
        family: its name.
        setting: value by recipe key, of the keys in which the family's trials differ; 0.0 for a loss that is off.
        loss: mean validation loss over seeds in nats per token; None where not all finished.
        behind: how far it is behind the family's smallest; None where either is unknown.
        is_chosen: whether it is the smallest; the first of those that tie.
    """

    family: str
    setting: Mapping[str, float]
    loss: float | None
    behind: float | None
    is_chosen: bool


def rank_trials(plan: SweepPlan, rows: Sequence[SweepRow]) -> list[Trial]:
    """Return the trials of a tuning sweep, in the order of its plan, with one chosen for each family."""
    trials: dict[str, list[tuple[dict[str, float], float | None]]] = {}
    for group in plan.groups:
        setting = _read_setting(plan.read_recipe(group, plan.seeds[0]))
        own = {row.seed: row.validation_loss for row in rows if row.group == group.name and row.is_finished}
        # A setting with which a seed failed has no mean: that of the others would be of the lucky ones.
        is_whole = own.keys() >= set(plan.seeds)
        trials.setdefault(group.curve, []).append(
            (setting, average_known(own.values()) if is_whole else None)
        )
    return [trial for family, own in trials.items() for trial in _rank(family, own)]


def _read_setting(config: RunConfig) -> dict[str, float]:
    coefficients = {} if config.model.moe is None else list_coefficients(config.model.moe)
    return {RATE: config.optim.lr, **{f"model.moe.{name}": value for name, value in coefficients.items()}}


def _rank(family: str, trials: Sequence[tuple[dict[str, float], float | None]]) -> list[Trial]:
    every = dict.fromkeys(key for setting, _ in trials for key in setting)
    keys = [key for key in every if len({setting.get(key, 0.0) for setting, _ in trials}) > 1]
    losses = [loss for _, loss in trials]
    least = min((loss for loss in losses if loss is not None), default=None)
    chosen = None if least is None else losses.index(least)
    return [
        Trial(
            family,
            {key: setting.get(key, 0.0) for key in keys},
            loss,
            None if loss is None or least is None else loss - least,
            i == chosen,
        )
        for i, (setting, loss) in enumerate(trials)
    ]


def list_choices(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """Return the choice as arguments of the other sweeps: ("rates", ...), then ("override", ...) for each other key."""
    chosen = [trial for trial in trials if trial.is_chosen]
    rates = [f"{trial.family}={trial.setting[RATE]:.15g}" for trial in chosen if RATE in trial.setting]
    choices = [("rates", ",".join(rates))] if rates else []
    return choices + [
        ("override", f"{trial.family}:{key}={value:.15g}")
        for trial in chosen
        for key, value in trial.setting.items()
        if key != RATE
    ]


def describe_edges(trials: Sequence[Trial]) -> list[str]:
    """Return a sentence for each chosen value that is the smallest or the largest of its grid."""
    sentences = []
    for chosen in (trial for trial in trials if trial.is_chosen):
        for key, value in chosen.setting.items():
            grid = [trial.setting[key] for trial in trials if trial.family == chosen.family]
            if value in (min(grid), max(grid)):
                where = f"{key.rpartition('.')[2]} {value:g} is at the edge of the grid"
                sentences.append(f"{chosen.family}: {where}; a better one may lie beyond")
    return sentences


def tabulate_trials(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Return a row for each trial: family, setting by key, loss, how far behind, and whether it is chosen."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.setting))
    return [
        {
            "family": trial.family,
            **{key.rpartition(".")[2]: trial.setting.get(key) for key in keys},
            "loss": trial.loss,
            "behind": trial.behind,
            "is_chosen": trial.is_chosen,
        }
        for trial in trials
    ]
