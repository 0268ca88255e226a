"""What `hmoe inspect` prints: each number with its interval and what random routing would give."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hmoe.cli.table import Column, Table, render_table

Rows = Sequence[dict[str, Any]]
_NUM_SHOWN = 6  # token types of an expert on a terminal
_FEATURES = {
    "frequency": "frequency",
    "nll": "its own loss",
    "bytes": "length",
    "senses": "senses",
    "word_position": "position in the word",
}


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
    lines = [*_describe_text(record["text"]), *_describe_activation(tables), ""]
    lines += render_table(_lay_out_widths(tables["widths"])).rstrip("\n").split("\n")
    lines += ["", *_describe_experts(tables)]
    if tables.get("tasks"):
        lines += ["", *render_table(_lay_out_tasks(tables["tasks"])).rstrip("\n").split("\n")]
        lines += list(_describe_task_differences(tables["task_differences"]))
    lines += ["", *_describe_top_tokens(tables), "", *(f"note: {note}" for note in record["notes"])]
    if folder is not None:
        lines.append(f"tables and {len(figures)} figures: {folder}")
    return lines


def _describe_text(text: Mapping[str, Any]) -> Iterator[str]:
    domains = len(text["domains"])
    yield (
        f"text        {text['source']}: {text['documents']:,} documents of {domains:,} domain{'s' * (domains != 1)}, "
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
    for state in ("dead", "rare"):
        named = [f"{row['layer']}:{row['expert']}" for row in tables["experts"] if row["state"] == state]
        if named:
            yield f"{state:11s} experts (layer:expert): {', '.join(named)}"
    if not any(row["state"] for row in tables["experts"]):
        yield "idle        no expert is dead or serves under 1% of what random routing would give it"
    yield from _describe_redundancy(tables)
    yield from _describe_sizes(tables["size_tests"])
    yield from _describe_difficulty(tables["difficulty"])
    yield from _describe_specialisation(tables["specialisation"])
    yield from _describe_worth(tables)


def _describe_redundancy(tables: Mapping[str, Rows]) -> Iterator[str]:
    if "redundancy" not in tables:
        return
    pairs = [row for row in tables["redundancy"] if row["is_redundant"]]
    named = ", ".join(f"{row['layer']}:{row['expert_a']} and {row['expert_b']}" for row in pairs[:8])
    more = f" and {len(pairs) - 8} more pairs" if len(pairs) > 8 else ""
    yield f"redundant   {named}{more}" if pairs else "redundant   no two experts of a layer compute the same"


def _describe_sizes(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["layer"] is None and row["distance"] == "rank" and row["correlation"] is not None:
            verdict = (
                "experts near in size read tokens of near frequency"
                if row["p"] <= 0.05
                else "not shown that experts near in size read alike"
            )
            yield f"sizes       {verdict} (Mantel r {row['correlation']:+.2f}, p {row['p']:.3f})"


def _describe_difficulty(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["layer"] is not None or row["over"] != "types" or row["correlation"] is None:
            continue
        name = _FEATURES.get(row["feature"], row["feature"])
        given = f" given {row['given']}" if row["given"] else ""
        null = (
            f", random routing {row['null_low']:+.2f} to {row['null_high']:+.2f}"
            if row["null_low"] is not None
            else ""
        )
        yield (
            f"difficulty  activated units of a token type against {name}{given}: rank correlation "
            f"{row['correlation']:+.2f}{_show_span(row, '+.2f')}{null}"
        )


def _describe_specialisation(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["layer"] is None and row["bits"] is not None and row["null_mean"] is not None:
            tail = "" if row["p"] is None else f", p {row['p']:.3f}"
            yield (
                f"specialised by {row['label']}: {row['bits']:.4f} bits{_show_span(row, '.4f')}, "
                f"random {row['null_mean']:.4f}{tail}"
            )


def _describe_worth(tables: Mapping[str, Rows]) -> Iterator[str]:
    known = [row for row in tables.get("worth", ()) if row["difference"] is not None]
    if not known:
        return
    best = max(known, key=lambda row: row["difference"])
    least = min(known, key=lambda row: row["difference"])
    for word, row in (("most", best), ("least", least)):
        yield (
            f"worth       {word}: expert {row['layer']}:{row['expert']} of {row['width']:,} units; without it the loss "
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
    yield f"tokens that experts of MoE layer {layer} read more than others (times as often, at least), narrow to wide:"
    experts = sorted(
        (row for row in tables["experts"] if row["layer"] == layer),
        key=lambda row: (row["width"], row["expert"]),
    )
    for expert in experts:
        own = [row for row in rows if row["layer"] == layer and row["expert"] == expert["expert"]][
            :_NUM_SHOWN
        ]
        shown = "  ".join(f"{row['text']!r} {row['lift_low']:.1f}" for row in own) or "none"
        yield f"  expert {expert['expert']} ({expert['width']:,} units)  {shown}"


def _show_span(row: Mapping[str, Any], form: str) -> str:
    """Return the interval of a row in brackets; "" where it has none."""
    if row["low"] is None or row["high"] is None:
        return ""
    return f" ({row['low']:{form}} to {row['high']:{form}})"
