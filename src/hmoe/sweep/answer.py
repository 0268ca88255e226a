"""What a sweep answers beyond a table: the isoFLOP analysis, and what so many seeds could show. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mode

from hmoe.runs.comparison import pair_by_seed, refuse_difference
from hmoe.runs.groups import RunGroup
from hmoe.statistics.isoflop import IsoflopResult, analyze_isoflop
from hmoe.statistics.loss_law import LossPoint
from hmoe.statistics.power import LEVEL, PowerAnalysis, Spread, analyze_power, measure_spread
from hmoe.sweep.families import REFERENCE
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.rows import SweepRow
from hmoe.sweep.speed import compare_seconds
from hmoe.units import format_flops

DIFFERENCE = 0.01  # nats: what the power of a sweep is told for
ASSUMED_SPREAD = 0.01  # nats: of pairs of seeds, before any were run; as measured at 2e12 to 4e12 FLOPs here


def list_loss_points(plan: SweepPlan, rows: Iterable[SweepRow]) -> list[LossPoint]:
    """Return the measured losses that the fits are of."""
    points = []
    for row in select_fitted_rows(plan, rows):
        assert row.budget is not None
        assert row.flops is not None
        assert row.tokens is not None
        assert row.validation_loss is not None
        points.append(
            LossPoint(
                family=row.family,
                size=row.size,
                seed=row.seed,
                budget=row.budget,
                flops=row.flops,
                tokens=row.tokens,
                loss=row.validation_loss,
                run=row.run,
                activated_parameters=row.activated_parameters,
            )
        )
    return points


def select_fitted_rows(plan: SweepPlan, rows: Iterable[SweepRow]) -> list[SweepRow]:
    """Return the rows that the fits are of: finished runs at their budgets, after the warm-up.

    A run of which every step was one of warm-up has not trained at the rate that the law is about. Runs just beyond it
    have done so in part and count: where to cut is a choice, and the sweep says what it leaves out.
    """
    warmups = _list_warmups(plan)
    return [row for row in rows if _is_measured(row) and not _is_early(row, warmups)]


def describe_left_out(plan: SweepPlan, rows: Iterable[SweepRow]) -> list[str]:
    """Return what the fits of an isoFLOP sweep are not of: measurements, and families that have no other."""
    warmups = _list_warmups(plan)
    measured = [row for row in rows if _is_measured(row)]
    early = [row for row in measured if _is_early(row, warmups)]
    if not early:
        return []
    where = dict.fromkeys(f"{row.group} at {format_flops(row.budget or 0)}" for row in early)
    fitted = {row.family for row in measured if not _is_early(row, warmups)}
    lost = dict.fromkeys(row.family for row in early if row.family not in fitted)
    return [
        f"Not in the fits: {len(early)} of {len(measured)} measurements, at which the warm-up was not over "
        f"({'; '.join(where)} FLOPs).",
        *(f"{family} has no fit: all its measurements are within the warm-up." for family in lost),
    ]


def _is_measured(row: SweepRow) -> bool:
    return row.is_finished and row.budget is not None


def _is_early(row: SweepRow, warmups: Mapping[str, int]) -> bool:
    return row.step is not None and 0 < row.step <= warmups[row.group]


def _list_warmups(plan: SweepPlan) -> dict[str, int]:
    """Return the steps of warm-up of each group; a control has those of its source."""
    sources = {
        group.name: plan.get_group(group.control_of) if group.control_of else group for group in plan.groups
    }
    return {
        name: plan.read_recipe(source, plan.seeds[0]).optim.warmup_steps for name, source in sources.items()
    }


def analyze_sweep(plan: SweepPlan, rows: Sequence[SweepRow]) -> IsoflopResult | None:
    """Fit the families of an isoFLOP sweep and compare them; None without a finished run.

    Args:
        plan: of the sweep.
        rows: of its table.
    """
    points = list_loss_points(plan, rows)
    families = list(dict.fromkeys(group.curve for group in plan.groups))
    known = [name for name in families if any(point.family == name for point in points)]
    if not known:
        return None
    reference = REFERENCE if REFERENCE in known else known[0]
    return analyze_isoflop(points, reference, compare_seconds(rows, reference))


def analyze_group_power(groups: Sequence[RunGroup], baseline: str | None) -> dict[str, PowerAnalysis]:
    """Return what the seeds of each group can show of its difference to the baseline, in nats, after they ran."""
    own = next((group for group in groups if group.name == baseline), None)
    pairs = {group.name: pair_by_seed(group, own) for group in groups if own is not None and group is not own}
    compared = {name: each for name, each in pairs.items() if refuse_difference(each) is None}
    powers: dict[str, PowerAnalysis] = {}
    for name, each in compared.items():
        spread = measure_spread([_subtract_loss(*pair) for pair in each])
        if spread is not None:
            # The level of the first step of Holm's correction, as the verdicts have it.
            powers[name] = analyze_power(spread, len(each), DIFFERENCE, level=LEVEL / len(compared))
    return powers


def analyze_isoflop_power(rows: Iterable[SweepRow], reference: str) -> dict[str, PowerAnalysis]:
    """Return what the seeds can show at one size of an isoFLOP sweep, in nats, for each family beside the reference.

    The spread of pairs of seeds is pooled over the sizes, at the largest budget: sizes differ in their means. Seeds are
    as many as most sizes have.
    """
    ends = {
        (row.family, row.size, row.seed): row for row in rows if row.is_finished
    }  # the last budget's stays
    differences: dict[str, dict[str, list[float]]] = {}
    for (family, size, seed), row in ends.items():
        other = ends.get((reference, size, seed))
        if family != reference and other is not None:
            assert row.validation_loss is not None
            assert other.validation_loss is not None
            own = differences.setdefault(family, {}).setdefault(size, [])
            own.append(row.validation_loss - other.validation_loss)
    spreads = {family: measure_spread(*sizes.values()) for family, sizes in differences.items()}
    # The level of each of several comparisons that hold together, as the intervals of `analyze_isoflop` have it.
    level = LEVEL / max(len(spreads), 1)
    return {
        family: analyze_power(spread, mode(map(len, differences[family].values())), DIFFERENCE, level=level)
        for family, spread in spreads.items()
        if spread is not None
    }


def _subtract_loss(run: object, other: object) -> float:
    return float(run.last_validation.loss - other.last_validation.loss)  # type: ignore[attr-defined]


def describe_power(powers: Mapping[str, PowerAnalysis], where: str = "") -> list[str]:
    """Return a sentence for each group on what its seeds can show; `where` says of what, such as "at one size "."""
    return [f"{name}: {where}{describe_one_power(power)}" for name, power in powers.items()]


def describe_one_power(power: PowerAnalysis) -> str:
    """Return what so many pairs can show, and how many a difference of 0.01 nats needs."""
    spread = power.spread
    if spread.low is None:
        start = f"if pairs spread by {spread.value:.4f} nats,"
    else:
        start = f"pairs spread by {spread.value:.4f} ({spread.low:.4f} to {spread.high:.4f}) nats, so"
    detectable = (
        "no difference" if power.detectable is None else f"differences of {power.detectable:.4f} nats"
    )
    needed = "more than 10,000" if power.pairs_needed is None else f"{power.pairs_needed:,}"
    return (
        f"{start} {power.num_pairs} seed{'s' * (power.num_pairs != 1)} can show {detectable} with {power.power:.0%} "
        f"power; {power.difference:g} nats need {needed} seeds"
    )


def describe_planned_power(plan: SweepPlan) -> str:
    """Return what the seeds of a plan can show, if their pairs spread as such runs did before."""
    num_compared = sum(not group.is_source and group.name != plan.baseline for group in plan.groups)
    level = LEVEL / max(num_compared, 1)
    return describe_one_power(analyze_power(Spread(ASSUMED_SPREAD), len(plan.seeds), DIFFERENCE, level=level))
