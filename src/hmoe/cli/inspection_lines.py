"""What `hmoe inspect` prints: the answers in short, most with their interval and what random routing would give."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hmoe.cli.table import Column, Table, render_table

Rows = Sequence[dict[str, Any]]
_NUM_SHOWN = 4  # token types of an expert on a terminal


def list_inspection_lines(
    record: Mapping[str, Any], figures: Sequence[str], folder: Path | None
) -> list[str]:
    """Return the lines for people.

    Args:
        record: of `hmoe.analyze.inspection`.
        figures: files that were written.
        folder: where tables and figures lie; None: nowhere.
    """
    tables = record["tables"]
    lines = [*_wrap(_describe_text(record["text"])), *_wrap(_describe_activation(tables)), ""]
    lines += render_table(_lay_out_widths(tables["widths"])).rstrip("\n").split("\n")
    lines += ["", *_wrap(_describe_experts(tables))]
    for table in (
        _lay_out_difficulty(tables["difficulty"]),
        _lay_out_specialisation(tables["specialisation"]),
    ):
        lines += ["", *render_table(table).rstrip("\n").split("\n")] if table.rows else []
    if record["options"]["chosen"]:
        lines += ["", *render_table(_lay_out_chosen(tables["chosen_tokens"])).rstrip("\n").split("\n")]
    if tables.get("tasks"):
        lines += ["", *render_table(_lay_out_tasks(tables["tasks"])).rstrip("\n").split("\n")]
        lines += _wrap(_describe_task_differences(tables["task_differences"]))
    lines += ["", *_wrap(_describe_top_tokens(tables)), ""]
    lines += _wrap(f"note        {note}" for note in record["notes"])
    if folder is not None:
        lines.append(f"tables and {len(figures)} figures: {folder}")
    return lines


def _wrap(lines: Iterable[str]) -> list[str]:
    """Return lines no wider than the terminal, those that go on below the text that they explain."""
    width, margin = shutil.get_terminal_size().columns, " " * 12
    return [
        part
        for line in lines
        for part in (
            [line]
            if len(line) <= width
            else textwrap.wrap(
                line, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
            )
        )
    ]


def _describe_text(text: Mapping[str, Any]) -> Iterator[str]:
    documents, domains = text["documents"], len(text["domains"])
    yield (
        f"text        {text['source']}: {documents:,} document{'s' * (documents != 1)} of {domains:,} "
        f"domain{'s' * (domains != 1)}, "
        f"{text['tokens']:,} tokens in windows of {text['window']:,}"
    )


def _describe_activation(tables: Mapping[str, Rows]) -> Iterator[str]:
    row = next(row for row in tables["layers"] if row["layer"] is None)
    yield (
        f"activated   {row['activated_ratio']:.2%}{_show_span(row, '.2%')} of the hidden units, "
        f"random routing {row['null']:.2%}; {row['experts_per_token']:.2f} experts per token"
    )


def _lay_out_widths(rows: Rows) -> Table:
    columns = [
        Column("width", "width"),
        Column("num_experts", "experts"),
        Column("ratio", "serves", "{:.2%}".format),
        Column("ratio_low", "from", "{:.2%}".format),
        Column("ratio_high", "to", "{:.2%}".format),
        Column("ratio_null", "random", "{:.2%}".format),
        Column("token_share", "of pairs", "{:.1%}".format),
        Column("compute_share", "of compute", "{:.1%}".format),
    ]
    return Table(
        columns, rows, ["serves: share of the tokens that an expert of this width serves, mean over layers"]
    )


def _describe_experts(tables: Mapping[str, Rows]) -> Iterator[str]:
    for state in ("dead", "rare", "unseen"):
        named = [f"{row['layer']}:{row['expert']}" for row in tables["experts"] if row["state"] == state]
        if named:
            why = ", too short to tell more" if state == "unseen" else ""
            yield f"{state:11s} experts (layer:expert) on this text{why}: {', '.join(named)}"
    if not any(row["state"] for row in tables["experts"]):
        yield "idle        every expert serves at least 1% of what random routing would give it"
    yield from _describe_redundancy(tables)
    yield from _describe_sizes(tables["size_tests"])
    yield from _describe_worth(tables)


def _describe_redundancy(tables: Mapping[str, Rows]) -> Iterator[str]:
    if not tables.get("redundancy"):
        return
    pairs = [row for row in tables["redundancy"] if row["is_redundant"]]
    named = ", ".join(f"{row['layer']}:{row['expert_a']} and {row['expert_b']}" for row in pairs[:8])
    more = f" and {len(pairs) - 8} more pairs" if len(pairs) > 8 else ""
    tokens = max((row["tokens"] for row in tables["redundancy"]), default=0)
    yield (
        f"redundant   {named}{more}"
        if pairs
        else f"redundant   no two experts of a layer are found to compute the same, on {tokens:,} tokens"
    )


def _describe_sizes(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["layer"] is None and row["distance"] == "rank" and row["correlation"] is not None:
            verdict = (
                "experts near in size read tokens of near frequency"
                if row["p"] <= 0.05
                else "not shown that experts near in size read alike"
            )
            yield (
                f"sizes       {verdict} (Mantel r {row['correlation']:+.2f}; p {row['p']:.3f}, the larger of its own "
                "and that of what lies beyond random routing)"
            )


def _lay_out_difficulty(rows: Rows) -> Table:
    """Return how activated units depend on what a token type is like, over all layers."""
    columns = [
        Column("against", "units against", str, is_text=True),
        Column("over", "over", str, is_text=True),
        Column("correlation", "rank r", "{:+.2f}".format),
        Column("low", "from", "{:+.2f}".format),
        Column("high", "to", "{:+.2f}".format),
        Column("random", "random", str),
        Column("is_shown", "shown", _say_yes, is_text=True),
    ]
    shown = [
        row | {"against": _name_feature(row), "random": _show_null(row), "is_shown": _is_beyond_null(row)}
        for row in rows
        if row["layer"] is None and row["correlation"] is not None
    ]
    legend = [
        "units: that a token activates, or the tokens of a type on average, mean over layers (each by itself: "
        "difficulty.csv)",
        "shown: beyond what random routing gives",
    ]
    return Table(columns, shown, legend)


def _name_feature(row: Mapping[str, Any]) -> str:
    name = str(row["feature"]).replace("_", " ")
    return f"{name} given freq." if row["given"] == "frequency" else name


def _show_null(row: Mapping[str, Any]) -> str | None:
    return None if row["null_low"] is None else f"{row['null_low']:+.2f} to {row['null_high']:+.2f}"


def _is_beyond_null(row: Mapping[str, Any]) -> bool | None:
    """Return whether the value lies outside the band of random routing, and its interval beside the band's middle."""
    value, low, high = row["correlation"], row["low"], row["high"]
    if low is None or row["null_low"] is None:
        return None
    middle = (row["null_low"] + row["null_high"]) / 2
    return bool((low > middle and value > row["null_high"]) or (high < middle and value < row["null_low"]))


def _say_yes(value: bool) -> str:
    return "yes" if value else "no"


def _lay_out_specialisation(rows: Rows) -> Table:
    """Return how much of an expert tells of its tokens, mean over layers."""
    columns = [
        Column("label", "expert tells of", str, is_text=True),
        Column("bits", "bits", "{:.4f}".format),
        Column("low", "from", "{:.4f}".format),
        Column("high", "to", "{:.4f}".format),
        Column("null_mean", "random", "{:.4f}".format),
        Column("p", "p", "{:.3f}".format),
    ]
    # Of a single class, such as one domain, nothing can be told, and there is no null.
    return Table(columns, [row for row in rows if row["layer"] is None and row["null_mean"] is not None])


def _lay_out_chosen(rows: Rows) -> Table:
    """Return token types that were asked for, with the experts that have most of their pairs."""
    columns = [
        Column("text", "token type", repr, is_text=True),
        Column("count", "tokens", "{:,}".format),
        Column("activated_ratio", "activated", "{:.2%}".format),
        Column("nll", "nll", "{:.2f}".format),
        Column("experts", "experts (layer:expert share)", str, is_text=True),
    ]
    shown = []
    for whole in rows:
        if whole["layer"] is not None:
            continue
        own = [row for row in rows if row["token"] == whole["token"] and row["share"] is not None]
        layers = dict.fromkeys(row["layer"] for row in own)
        most = [max((r for r in own if r["layer"] == layer), key=lambda r: r["share"]) for layer in layers]
        experts = "  ".join(f"{row['layer']}:{row['expert']} {row['share']:.0%}" for row in most)
        shown.append(whole | {"experts": experts or "none"})
    return Table(columns, shown, ["share: of the token's pairs in the layer, of the expert that has most"])


def _describe_worth(tables: Mapping[str, Rows]) -> Iterator[str]:
    rows = [row for row in tables.get("worth", ()) if row["difference"] is not None]
    if not rows:
        return
    tested = [row for row in rows if row["p"] is not None]
    known = [row for row in tested if row["p"] <= 0.05]
    ordered = sorted(known, key=lambda row: row["difference"])
    if ordered and ordered[-1]["difference"] > 0:
        yield f"worth       most: {_describe_loss(ordered[-1])}"
    if ordered and ordered[0]["difference"] < 0:
        yield f"worth       harms: {_describe_loss(ordered[0])}"
    if len(known) < len(tested):
        yield (
            f"worth       of {len(tested) - len(known)} of {len(tested)} experts it is not shown that the loss changes "
            "without them (p above 5% after Holm's correction over all)"
        )
    if len(tested) < len(rows):
        yield f"worth       of {len(rows) - len(tested)} of {len(rows)} experts there is no test, by so few documents"
    nearest = min(rows, key=lambda row: abs(row["difference"]))
    yield f"worth       nearest to nothing, as measured: {_describe_loss(nearest)}"


def _describe_loss(row: Mapping[str, Any]) -> str:
    return (
        f"expert {row['layer']}:{row['expert']} of {row['width']:,} units; without it the loss "
        f"changes by {row['difference']:+.4f}{_show_span(row, '+.4f')} nats per token"
    )


def _lay_out_tasks(rows: Rows) -> Table:
    columns = [
        Column("task", "task", str, is_text=True),
        Column("questions", "questions"),
        Column("tokens", "tokens"),
        Column("activated_ratio", "activated", "{:.2%}".format),
        Column("low", "from", "{:.2%}".format),
        Column("high", "to", "{:.2%}".format),
        Column("experts_per_token", "experts", "{:.2f}".format),
    ]
    return Table(columns, rows)


def _describe_task_differences(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["difference"] is None or row["low"] is None:
            continue
        excludes_zero = row["low"] > 0 or row["high"] < 0
        verdict = "differ" if excludes_zero else "no difference shown"
        yield (
            f"{row['task']} - {row['other']}: {100 * row['difference']:+.2f} points "
            f"({100 * row['low']:+.2f} to {100 * row['high']:+.2f}): {verdict}"
        )


def _describe_top_tokens(tables: Mapping[str, Rows]) -> Iterator[str]:
    """Yield what the experts of one layer read more than others: of the layer where most is known."""
    rows = tables["top_tokens"]
    if not rows:
        yield "tokens      no expert reads any token type more often than others (false discovery rate 5%)"
        return
    sizes = {layer: sum(row["layer"] == layer for row in rows) for layer in {row["layer"] for row in rows}}
    layer = max(sorted(sizes), key=sizes.__getitem__)
    yield f"tokens that experts of MoE layer {layer} read more than random routing would (times as often, at least):"
    experts = sorted(
        (row for row in tables["experts"] if row["layer"] == layer),
        key=lambda row: (row["width"], row["expert"]),
    )
    for expert in experts:
        own = [row for row in rows if row["layer"] == layer and row["expert"] == expert["expert"]][
            :_NUM_SHOWN
        ]
        shown = (
            "  ".join(f"{row['text']!r} {row['lift_low'] / row['lift_null']:.1f}" for row in own) or "none"
        )
        yield f"  expert {expert['expert']} ({expert['width']:,} units)  {shown}"


def _show_span(row: Mapping[str, Any], form: str) -> str:
    """Return the interval of a row in brackets; "" where it has none."""
    if row["low"] is None or row["high"] is None:
        return ""
    return f" ({row['low']:{form}} to {row['high']:{form}})"
