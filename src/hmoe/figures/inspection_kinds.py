"""Charts of the kinds of tokens that experts read, with what is sure told apart from what a few tokens make."""

from collections.abc import Mapping
from typing import Any

from hmoe.figures.inspection_charts import Rows, name_experts, order_experts
from hmoe.figures.records import HeatMap

SURE = 0.05  # of a test, at most
FEWEST_PAIRS = 50  # of an expert with a kind of token, from which its lift is called sure


def add_pair_counts(profiles: Rows, experts: Rows) -> list[dict[str, Any]]:
    """Return profiles with the pairs that each rests on; where a record has none, about as many as its share says."""
    tokens = {(row["layer"], row["expert"]): row["tokens"] for row in experts}
    return [
        {**row, "pairs": row["pairs"] if "pairs" in row else _estimate_pairs(row, tokens)} for row in profiles
    ]


def _estimate_pairs(row: Mapping[str, Any], tokens: Mapping[tuple[int, int], int]) -> int | None:
    total = tokens.get((row["layer"], row["expert"]))
    return None if total is None or row["share"] is None else round(row["share"] * total)


def is_liked_surely(row: Mapping[str, Any]) -> bool:
    """Return whether an expert has a kind of token more often than chance: by its test, and by enough pairs."""
    if row["lift"] is None or row["low"] is None or row["low"] <= get_null(row) or not _is_shown(row):
        return False
    return row.get("pairs") is None or row["pairs"] >= FEWEST_PAIRS


def _is_avoided_surely(row: Mapping[str, Any], rows: Rows) -> bool:
    """Return the same of less than chance: so many pairs would there be by chance."""
    if row["lift"] is None or row["high"] is None or row["high"] >= get_null(row) or not _is_shown(row):
        return False
    kind = [other for other in rows if (other["label"], other["class"]) == (row["label"], row["class"])]
    known = [other["pairs"] for other in kind if other.get("pairs") is not None]
    return not known or sum(known) >= FEWEST_PAIRS * len(kind)


def get_null(row: Mapping[str, Any]) -> float:
    """Return the lift that chance gives: 1, unless tokens of some kinds take more experts than others."""
    null = row.get("lift_null")
    return 1.0 if null is None else float(null)


def _is_shown(row: Mapping[str, Any]) -> bool:
    """Return whether the test, corrected over all that are looked at, shows a difference; older records have none."""
    return "p" not in row or (row["p"] is not None and row["p"] <= SURE)


def describe_liking(row: Mapping[str, Any]) -> str:
    """Return how many times as often as chance an expert has a kind of token, with interval and count."""
    text = f"{row['lift']:.1f} times as often as chance ({row['low']:.1f} to {row['high']:.1f}"
    return f"{text}; {row['pairs']:,} pairs)" if row.get("pairs") is not None else f"{text})"


def chart_profiles(rows: Rows, layer: int) -> HeatMap | None:
    """Return how many times as often as chance an expert's tokens are of each class, in one layer."""
    own = [row for row in rows if row["layer"] == layer and row["lift"] is not None]
    if not own:
        return None
    experts = order_experts(own)
    cells = {(row["label"], row["class"], row["expert"]): row for row in own}
    # What all experts have as often as chance, such as tokens without digits, tells nothing.
    telling = [row for row in own if not 0.95 < row["lift"] < 1.05] or own
    classes = list(dict.fromkeys((row["label"], row["class"]) for row in telling))
    best = max(filter(is_liked_surely, own), key=lambda row: row["low"], default=None)
    text = f"No kind of token is shown to be liked, on {FEWEST_PAIRS} pairs or more." if best is None else (
        f"Most: the expert of {best['width']} units has {best['class']} {describe_liking(best)}."
    )  # fmt: skip
    grid = [[cells.get((*key, expert)) for expert, _ in experts] for key in classes]
    return HeatMap(
        title=f"Layer {layer}: kinds of tokens",
        description=text,
        row_labels=[name for _, name in classes],
        column_labels=name_experts(experts),
        values=[[None if cell is None else cell["lift"] for cell in line] for line in grid],
        row_title="",
        column_title="hidden units of the expert",
        value_label="times as often as chance (colours end at 2)",
        null=1.0,
        limits=(0.0, 2.0),
        digits=1,
        pale=[
            [cell is None or not (is_liked_surely(cell) or _is_avoided_surely(cell, own)) for cell in line]
            for line in grid
        ],
    )
