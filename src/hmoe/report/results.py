"""The table of results, like the HMoE paper's first, with an interval on every number that has one."""

from collections.abc import Iterator, Mapping
from typing import Any

from hmoe.report.headline import show_signed
from hmoe.report.inputs import ReportInputs
from hmoe.report.pieces import PageColumn, PagePart, PageSection, PageTable
from hmoe.units import format_count, format_duration, format_flops


def describe_results(inputs: ReportInputs) -> PageSection:
    """Return the section that lays the recipes side by side."""
    comparison = inputs.comparison
    tasks = list(dict.fromkeys(task for row in comparison.rows for task in row["benchmarks"]))
    rows = [_describe_row(row) | {task: row["benchmarks"].get(task) for task in tasks}
            for row in comparison.rows]  # fmt: skip
    columns = [
        PageColumn("recipe", "Recipe", is_text=True),
        PageColumn("seeds", "Seeds"),
        PageColumn("bits_per_byte", "Bits per byte", "{:.4f}".format),
        PageColumn("half_width", "± 95%", "{:.4f}".format),
        PageColumn("activated_parameters", "Activated parameters", format_count),
        PageColumn("total_parameters", "All parameters", format_count),
        PageColumn("activated_width", "Activated units", "{:,.0f}".format),
        PageColumn("uniform_width", "Without preference", "{:,.0f}".format),
        PageColumn("flops", "FLOPs", format_flops),
        PageColumn("tokens", "Tokens", format_count),
        PageColumn("seconds", "Time", format_duration),
        *(PageColumn(task, task, "{:.1%}".format) for task in tasks),
    ]
    caption = "Recipes, means over their seeds." if len(inputs.records) > len(rows) else "Recipes."
    tables = [PageTable("results", caption, columns, rows), *_list_differences(inputs)]
    if len(inputs.records) > len(inputs.groups):
        tables.append(_list_runs(inputs))
    return PageSection(
        "results",
        "Results",
        "Fewer bits per byte are better: that many it takes to write the held-out text with the model's help. "
        "The interval is Student's t over seeds.",
        [PagePart(tables=tables)],
        list(_explain_columns(comparison.rows)),
    )


def _describe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recipe": row["name"],
        "seeds": row["num_seeds"],
        "bits_per_byte": row["bits_per_byte"],
        "half_width": row["bits_per_byte_half_width"],
        "activated_parameters": row["activated_parameters"],
        "total_parameters": row["total_parameters"],
        "activated_width": row["mean_activated_width"],
        "uniform_width": row["uniform_width"],
        "flops": row["flops"],
        "tokens": row["tokens"],
        "seconds": row["seconds"],
    }


def _explain_columns(rows: list[dict[str, Any]]) -> Iterator[str]:
    if any(row["uniform_width"] for row in rows):
        yield (
            "Activated units: hidden units that a token used per MoE layer, mean over the training; "
            "without preference: what a uniform router would use."
        )


def _list_differences(inputs: ReportInputs) -> list[PageTable]:
    """Return a table of the differences to the baseline, if there is one."""
    rows = [
        {
            "recipe": row["name"],
            "pairs": row.get("pairs"),
            "difference": row.get("difference"),
            "low": row.get("difference_low"),
            "high": row.get("difference_high"),
            "p_holm": row.get("adjusted_p"),
            "verdict": row.get("verdict"),
        }
        for row in inputs.comparison.rows
        if row["name"] != inputs.baseline
    ]
    if inputs.baseline is None or not rows:
        return []
    columns = [
        PageColumn("recipe", "Recipe", is_text=True),
        PageColumn("pairs", "Pairs of seeds"),
        PageColumn("difference", "Difference", show_signed),
        PageColumn("low", "From", show_signed),
        PageColumn("high", "To", show_signed),
        PageColumn("p_holm", "p (Holm)", "{:.3f}".format),
        PageColumn("verdict", "Verdict", is_text=True),
    ]
    caption = f"Differences to {inputs.baseline} in bits per byte, seed by seed; below zero is better."
    return [PageTable("differences", caption, columns, rows)]


def _list_runs(inputs: ReportInputs) -> PageTable:
    rows = []
    for record in inputs.records:
        run, validation = record.summary, record.summary.last_validation
        rows.append(
            {
                "run": record.name,
                "recipe": record.group,
                "seed": run.config.seed,
                "steps": run.step,
                "bits_per_byte": validation.bits_per_byte if validation else None,
                "nats_per_token": validation.loss if validation else None,
                "activated_width": run.mean_width,
                "flops": run.flops,
                "seconds": run.seconds,
            }
        )
    columns = [
        PageColumn("run", "Run", is_text=True),
        PageColumn("recipe", "Recipe", is_text=True),
        PageColumn("seed", "Seed"),
        PageColumn("steps", "Steps"),
        PageColumn("bits_per_byte", "Bits per byte", "{:.4f}".format),
        PageColumn("nats_per_token", "Nats per token", "{:.4f}".format),
        PageColumn("activated_width", "Activated units", "{:,.1f}".format),
        PageColumn("flops", "FLOPs", format_flops),
        PageColumn("seconds", "Time", format_duration),
    ]
    return PageTable("runs", "Each run on its own", columns, rows, is_folded=True)
