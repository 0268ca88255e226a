"""What the page of results, and the README, say in words and numbers is what the tables say."""

import csv
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from hmoe.statistics.intervals import compute_mean_interval
from hmoe.statistics.paired import compare_paired
from hmoe.sweep.answer import analyze_sweep
from hmoe.sweep.outcome import compare_sweep, describe_controls, group_summaries, summarize_rows
from hmoe.sweep.plan import read_plan
from hmoe.sweep.rows import read_rows
from tests.repo.results_tables import (
    FOLDERS,
    PAGE,
    RECORDS,
    RESULTS,
    compare_controls,
    list_bits,
    subtract_groups,
)


def test_the_page_says_of_rules_what_all_their_rows_say() -> None:
    """Ten were trained together; the keys of some have left, so that a sweep of today compares fewer."""
    rows = [row for name in ("rules", "rules-left") for row in read_rows(RESULTS / name / "rows.csv")]
    bits: dict[str, dict[int, float]] = {}
    for row in rows:
        assert row.status == "finished"
        bits.setdefault(row.group, {})[row.seed] = row.validation_bits_per_byte or math.nan
    assert len(rows) == 88
    assert {len(own) for own in bits.values()} == {8}

    def subtract(name: str, other: str) -> list[float]:
        return [bits[name][seed] - bits[other][seed] for seed in range(8)]

    results = compare_paired({name: subtract(name, "penalty") for name in bits if name != "penalty"})
    for name, result in results.items():
        low, high = result.interval.low or math.nan, result.interval.high or math.nan
        verdict = "ahead" if high < 0 else "behind" if low > 0 else "no difference shown"
        width = sum(row.mean_activated_width or 0 for row in rows if row.group == name) / 8
        difference = f"{result.interval.mean:+.4f} | {low:+.4f} | {high:+.4f}"
        assert f"| {name} | {width:.0f} | {difference} | {verdict} |" in PAGE
    balance = compute_mean_interval(subtract("size-balance", "hybrid"))
    assert f"{balance.mean:.4f} ± {balance.half_width:.4f} behind, uncorrected." in PAGE


SIZE_ROWS = read_rows(RESULTS / "isoflop" / "rows.csv")


def compare_unequal(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the row of unequal experts beside equal ones, and the verdict beside their control."""
    plan, rows = read_plan(folder / "sweep.yaml"), read_rows(folder / "rows.csv")
    comparison = compare_sweep(plan, rows, folder)
    assert comparison is not None
    (row,) = (row for row in comparison.rows if row["name"] == "unequal-topk")
    groups = group_summaries(plan, summarize_rows(plan, rows, folder))
    (control,) = describe_controls(plan, groups, plan.baseline)
    return row, control.partition(" bits per byte, ")[2]


COUNTS = {6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 11: "eleven"}


def test_the_readme_says_what_the_tables_say() -> None:
    readme, text = " ".join((RESULTS.parents[1] / "README.md").read_text().split()), " ".join(PAGE.split())
    row, _ = compare_unequal(RESULTS / "tuned")
    own = f"{row['difference']:+.4f} bits per byte ({row['difference_low']:+.4f} to {row['difference_high']:+.4f})"
    assert (
        f"{row['pairs']} paired seeds of 1e13 FLOPs tuned unequal experts differ by {own} from equal ones"
        in readme
    )
    plain, plain_control = compare_unequal(RESULTS / "families")
    verdicts = (row["verdict"], plain["verdict"], plain_control)
    assert all(verdict.startswith("no difference shown") for verdict in verdicts)
    assert "hmoe shows no gain" in readme
    # Several comparisons put the question, so each answer counts with a correction over all.
    results = compare_controls()
    shown = [name for name, result in results.items() if result.excludes_zero]
    assert shown == [("tuned", "unequal-topk"), ("width-cost", "unequal-topk")]
    assert all(results[name].interval.mean > 0 for name in shown)  # behind
    count = COUNTS[len(results)]
    assert f"shown to be ahead in none of {count} comparisons and behind in two" in readme
    tuned, costly = (results[name] for name in shown)
    ends = f"{tuned.interval.low:.4f} to {tuned.interval.high:.4f}"
    assert f"tuned (by {tuned.interval.mean:.4f}, {ends}) and with a cost of width" in readme
    words = f"p {tuned.interval.tail:.4f} alone, {tuned.adjusted_tail:.3f} with Holm's correction over the {count}"
    assert f"{words} comparisons with a control on this page" in text
    bits = list_bits(RESULTS / "tuned")
    later = compute_mean_interval(
        [bits["unequal-topk"][seed] - bits["control-topk"][seed] for seed in range(8, 16)]
    )
    ends = f"({later.low:+.4f} to {later.high:+.4f}), p {later.tail:.3f}."
    assert f"the eight later ones count for themselves too: {later.mean:+.4f} {ends}" in text
    assert f"{costly.interval.mean:+.4f} bits per byte, p {costly.interval.tail:.3f} alone." in text
    ends = f"({costly.interval.low:+.4f} to {costly.interval.high:+.4f}, p {costly.adjusted_tail:.3f})"
    behind = COUNTS[sum(result.interval.mean > 0 for result in results.values())]
    assert f"{ends}, as in `tuned`, and no other is; {behind} of {count} lean to behind" in text
    assert f"{count.capitalize()} comparisons on this page put that question" in text


def test_the_page_says_what_controls_beside_equal_experts_show() -> None:
    pairs = {(name, "control-topk"): "equal-topk" for name in ("families", "tuned", "width-cost")}
    pairs |= {("strategies", f"{shape}-control"): "equal" for shape in ("arithmetic", "hybrid", "geometric")}
    results = compare_paired(
        {key: subtract_groups(RESULTS / key[0], key[1], equal) for key, equal in pairs.items()}
    )
    tuned, costly = results["tuned", "control-topk"], results["width-cost", "control-topk"]
    words = f"(by {-tuned.interval.mean:.4f}, p {tuned.adjusted_tail:.3f} with a correction over six controls beside"
    assert f"{words} equal experts), not here at 222 (p {costly.adjusted_tail:.3f})." in " ".join(
        PAGE.split()
    )
    assert [key for key, result in results.items() if result.excludes_zero] == [("tuned", "control-topk")]


def subtract_reruns(folder: str, name: str, other_folder: str, other: str) -> list[float]:
    """Return what reruns differ by, seed by seed, where both folders have the seed."""
    bits, others = list_bits(RESULTS / folder)[name], list_bits(RESULTS / other_folder)[other]
    return [bits[seed] - others[seed] for seed in sorted(bits.keys() & others.keys())]


def test_the_page_says_what_reruns_differ_by() -> None:
    text = " ".join(PAGE.split())
    equal = subtract_reruns("tuned", "equal-topk", "width-cost", "equal-topk")
    unequal = subtract_reruns("families", "unequal-topk", "losses", "penalty")
    assert (len(equal), len(unequal)) == (8, 4)
    assert (
        f"up to {max(map(abs, equal)):.4f} bits per byte, standard deviation {stdev(equal):.4f} over eight"
        in text
    )
    assert f"up to {max(map(abs, unequal)):.4f}, {stdev(unequal):.4f} over four." in text
    trained: dict[tuple[str, int], dict[str, float]] = {}
    for folder in [*FOLDERS, *RECORDS]:
        for row in read_rows(folder / "rows.csv"):
            own = trained.setdefault((row.recipe, row.seed), {})
            own[folder.name] = row.validation_bits_per_byte or math.nan
    again = [set(values.values()) for values in trained.values() if len(values) > 1]
    exact = sum(len(values) == 1 for values in again)
    largest = max(max(values) - min(values) for values in again)
    assert (len(again), exact) == (21, 5)
    assert (
        f"Of {len(again)} recipes and seeds that two or more sweeps trained, five have the same loss" in text
    )
    assert f"the others differ by up to {largest:.4f} bits per byte" in text


def test_the_page_says_of_losses_what_their_rows_say() -> None:
    bits = {
        row.run: row.validation_bits_per_byte or math.nan
        for row in read_rows(RESULTS / "losses" / "rows.csv")
    }
    interval = compute_mean_interval([bits[f"penalty-{seed}"] - bits[f"balance-{seed}"] for seed in range(4)])
    words = f"{interval.mean:+.4f} bits per byte ({interval.low:+.4f} to {interval.high:+.4f}), no difference shown"
    assert words in " ".join(PAGE.split())
    assert (interval.low or 0) < 0 < (interval.high or 0)


def test_the_page_says_of_strategies_what_their_rows_say() -> None:
    folder = RESULTS / "strategies"
    pairs = {
        "geometric less arithmetic widths": ("geometric", "arithmetic"),
        "geometric less hybrid": ("geometric", "hybrid"),
        "hybrid less arithmetic": ("hybrid", "arithmetic"),
    }
    results = compare_paired({name: subtract_groups(folder, *groups) for name, groups in pairs.items()})
    controls = compute_mean_interval(subtract_groups(folder, "geometric-control", "arithmetic-control"))
    assert f"by {controls.mean:.4f} (p {controls.tail:.3f} alone)" in PAGE
    text = " ".join(PAGE.split())
    for name, result in results.items():
        interval = result.interval
        assert f"{name} {interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})" in text
    assert [name for name, result in results.items() if result.excludes_zero] == [*pairs][:1]


def test_the_page_says_of_ten_times_the_budget_what_its_rows_say() -> None:
    folder, text = RESULTS / "longer", " ".join(PAGE.split())
    for name, words in (("unequal-topk", "less their control"), ("expected-width", "are as wide to 3%,")):
        interval = compute_mean_interval(subtract_groups(folder, name, "control-topk"))
        own = f"{interval.mean:+.4f}"
        ends = f"({interval.low:+.4f} to {interval.high:+.4f} alone)"
        assert re.search(f"{words} {re.escape(own)}( bits per byte)? {re.escape(ends)}", text)
        assert (interval.low or 0) < 0 < (interval.high or 0)
    rows = read_rows(folder / "rows.csv")
    losses: dict[str, list[float]] = {}
    widths: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row.group, []).append(row.validation_loss or math.nan)
        widths.setdefault(row.group, []).append(row.mean_activated_width or math.nan)
    apart = [max(values) - min(values) for values in losses.values()]
    assert f"differ by {min(apart):.3f} to {max(apart):.3f} nats between the three seeds" in text
    shares = zip(widths["expected-width"], widths["control-topk"], strict=True)
    assert f"as wide to {max(abs(own / other - 1) for own, other in shares):.0%}" in text
    cost = subtract_groups(folder, "expected-width", "control-topk")
    assert f"({cost[0]:+.4f}, {cost[1]:+.4f} and {cost[2]:+.4f} from the control)" in text
    changes = [
        100 * ((row.narrow_share_end or 0) - (row.narrow_share_begin or 0))
        for row in rows
        if row.group == "unequal-topk"
    ]
    change = compute_mean_interval(changes)
    assert f"over 1e14 ({change.mean:+.1f} points, {change.low:+.1f} to {change.high:+.1f}" in text


def test_the_page_says_of_ratios_what_their_rows_say() -> None:
    folder, text = RESULTS / "ratio", " ".join(PAGE.split())
    bits, others = list_bits(folder), list_bits(RESULTS / "strategies")
    for own, other in (
        ("ratio=1", "equal"),
        ("ratio=23-9", "arithmetic"),
        ("ratio=23-9-control", "arithmetic-control"),
    ):
        assert bits[own] == others[other]  # "the same losses to the last digit"
    results = compare_paired(
        {name: subtract_groups(folder, name, "ratio=1") for name in bits if name != "ratio=1"}
    )
    controls = compare_paired(
        {name: subtract_groups(folder, name, f"{name}-control") for name in bits if f"{name}-control" in bits}
    )
    assert not any(result.excludes_zero for result in (*results.values(), *controls.values()))
    assert len(controls) == 4
    assert all(result.interval.mean > 0 for result in controls.values())  # "all four of which lean to behind"
    rows = {name: [row for row in read_rows(folder / "rows.csv") if row.group == name] for name in bits}
    units = [fmean(row.mean_activated_width or 0 for row in rows[name]) for name in ("ratio=1", "ratio=8")]
    tokens = [fmean(row.tokens or 0 for row in rows[name]) / 1e6 for name in ("ratio=1", "ratio=8")]
    assert f"fall from {units[0]:.0f} to {units[1]:.0f}, and the tokens read grow" in text
    assert f"from {tokens[0]:.2f} to {tokens[1]:.2f} million." in text


SIZES = ("x0.5", "x0.75", "x1", "x1.5")


def test_the_page_says_of_sizes_what_their_rows_say() -> None:
    rows = {(row.family, row.budget, row.size, row.seed): row for row in SIZE_ROWS}
    text = " ".join(PAGE.split())

    def subtract(budget: float, size: str) -> float:
        """Return a mean over seeds: pairs of one size are not independent."""
        losses = [
            fmean(rows[family, budget, size, seed].validation_loss or math.nan for seed in (0, 1))
            for family in ("unequal-topk", "equal-topk")
        ]
        return losses[0] - losses[1]

    means = {budget: [subtract(budget, size) for size in SIZES] for budget in (3e12, 1e13, 3e13)}
    results = compare_paired({1e12: [subtract(1e12, size) for size in SIZES[:3]], **means})
    for result in results.values():
        interval = result.interval
        assert f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})" in text
    last = results[3e13]
    words = f"p {last.interval.tail:.3f} alone, {last.adjusted_tail:.3f} corrected."
    assert f"{words} No difference is shown." in text
    assert not any(result.excludes_zero for result in results.values())
    ends = [
        (rows["unequal-topk", 3e13, size, seed], rows["equal-topk", 3e13, size, seed])
        for size in SIZES
        for seed in (0, 1)
    ]
    widths = [(own.mean_activated_width or 0) / (other.mean_activated_width or 1) for own, other in ends]
    tokens = [(own.tokens or 0) / (other.tokens or 1) - 1 for own, other in ends]
    assert f"{min(widths):.0%} to {max(widths):.0%} of the width" in text
    assert f"{min(tokens):.0%} to {max(tokens):.0%} more tokens" in text
    collapsed = [rows["unequal-topp", 3e13, size, seed] for size in SIZES for seed in (0, 1)]
    idle = [row.idle_share_end or 0 for row in collapsed]
    taken = [row.experts_per_token or 0 for row in collapsed]
    assert f"({min(idle):.0%} to {max(idle):.0%} of its experts idle" in text
    assert f"{min(taken):.2f} to {max(taken):.2f} experts a token)" in text
    again = [row.epochs or 0 for row in rows.values() if (row.size, row.budget) == ("x0.5", 3e13)]
    assert f"text {min(again):.1f} to {max(again):.1f} times" in text


def test_the_page_says_of_fits_what_they_say() -> None:
    pytest.importorskip("scipy")
    plan = read_plan(RESULTS / "isoflop" / "sweep.yaml")
    result = analyze_sweep(plan, SIZE_ROWS)
    assert result is not None
    text, sizes, worth = " ".join(PAGE.split()), {}, {}
    for family in result.families:
        assert family.fit.misfit is None  # "no lack of fit is found"
        for budget in family.budgets:
            size, leverage = budget.optimal_size, budget.leverage
            assert size is not None
            sizes[family.family, budget.budget] = size
            worth[family.family, budget.budget] = None if leverage is None else leverage.interval
    own = {budget: worth["unequal-topk", budget] for budget in (1e12, 3e12, 1e13, 3e13)}
    assert not any(interval is None or interval.excludes(1.0) for interval in own.values())
    last = own[3e13]
    assert last is not None
    late = analyze_sweep(plan, [row for row in SIZE_ROWS if (row.step or 0) > 120])
    assert late is not None
    (again,) = (family.budgets[-1].leverage for family in late.families if family.family == "unequal-topk")
    assert again is not None
    interval = again.interval
    assert (
        f"fewer) unequal top-k is worth {interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f}) at"
        in text
    )
    assert f"{last.low:.2f} to {last.high:.2f} times at 3e13 FLOPs." in text
    readme = " ".join((RESULTS.parents[1] / "README.md").read_text().split())
    assert f"worth {last.value:.2f} ({last.low:.2f} to {last.high:.2f}) times the compute at 3e13" in readme
    for name in ("dense", "unequal-topp"):
        assert all((worth[name, budget].high or 2) < 1 for budget in (3e12, 1e13, 3e13))  # type: ignore[union-attr]
    equal, unequal = sizes["equal-topk", 3e13], sizes["unequal-topk", 3e13]
    words = [f"{(end or 0) / 1e3:.0f}k" for size in (equal, unequal) for end in (size.low, size.high)]
    assert f"({words[0]} to {words[1]} of equal top-k, {words[2]} to {words[3]} of unequal)" in text
    for name in ("equal-topk", "unequal-topk"):  # "the parabolas' lie outside of them"
        (family,) = (each for each in result.families if each.family == name)
        parabola, high = family.budgets[-1].parabola, sizes[name, 3e13].high
        assert parabola is not None
        assert (parabola.optimal_size or 0) > (high or math.inf)


def test_the_page_says_of_difficulty_what_all_runs_say() -> None:
    with (RESULTS / "tuned-difficulty.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["over"], row["given"]) == ("types", "")]
    text = " ".join(PAGE.split())
    for feature, words in (("frequency", "with its frequency"), ("nll", "with its loss")):
        values = {row["run"]: float(row["correlation"]) for row in rows if row["feature"] == feature}
        assert values.keys() == {f"unequal-topk-{seed}" for seed in range(8)}
        interval = compute_mean_interval(list(values.values()))
        assert f"{interval.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f}) {words}" in text
        assert (interval.low or 0) < 0 < (interval.high or 0)  # no difference shown
