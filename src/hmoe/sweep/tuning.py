"""Which learning rate each family takes from a grid that is the same for all, by a rule that is the same. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hmoe.runs.summary import average_known
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow

RULE = "each family takes the rate of its smallest mean loss, for all sizes and budgets; a control takes its source's"


@dataclass(frozen=True)
class TunedRate:
    """What a grid of learning rates says of one family.

    Attributes:
        family: its name.
        losses: mean validation loss over seeds by learning rate; None where not all
            finished.
        rate: of the smallest loss; None where no rate has one.
        is_at_edge: whether that is the smallest or the largest of the grid, beyond which a better one may lie.
        margin: how far the next best rate is behind, in nats; None where there is none.
    """

    family: str
    losses: Mapping[float, float | None]
    rate: float | None
    is_at_edge: bool
    margin: float | None


def choose_rates(plan: SweepPlan, rows: Sequence[SweepRow]) -> list[TunedRate]:
    """Choose the learning rate of each family of a tuning sweep."""
    losses: dict[str, dict[float, float | None]] = {}
    for group in plan.groups:
        rate = plan.read_recipe(group, plan.seeds[0]).optim.lr
        own = {row.seed: row.validation_loss for row in rows if row.group == group.name and row.is_finished}
        # A rate at which a seed failed has no mean: that of the others would be of the lucky ones.
        is_whole = own.keys() >= set(plan.seeds)
        losses.setdefault(group.curve, {})[rate] = average_known(own.values()) if is_whole else None
    return [_choose_rate(family, dict(sorted(by_rate.items()))) for family, by_rate in losses.items()]


def _choose_rate(family: str, losses: Mapping[float, float | None]) -> TunedRate:
    known = {rate: loss for rate, loss in losses.items() if loss is not None}
    if not known:
        return TunedRate(family, losses, None, False, None)
    order = sorted(known, key=lambda rate: known[rate])
    margin = known[order[1]] - known[order[0]] if len(order) > 1 else None
    return TunedRate(family, losses, order[0], order[0] in (min(losses), max(losses)), margin)


def format_rates(rates: Sequence[TunedRate]) -> str:
    """Return the choice as the option `rates` of the other sweeps takes it."""
    return ",".join(f"{tuned.family}={tuned.rate:g}" for tuned in rates if tuned.rate is not None)
