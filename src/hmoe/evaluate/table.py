"""Sum up the results of tasks, and lay them out like Table 1 of the HMoE paper."""

import math
from typing import Any

from hmoe.config.counts import count_activated_parameters, count_parameters
from hmoe.data.benchmark_splits import PAPER_SIX, PAPER_TASKS
from hmoe.model.trace import average_activated
from hmoe.specs.model import ModelSpec

METRIC = "acc"  # all seven tasks have it; the paper does not say which accuracy it prints
_PAPER = [task.name for task in PAPER_TASKS]


def summarize_results(
    head: dict[str, Any], records: dict[str, dict[str, Any]], model: ModelSpec
) -> dict[str, Any]:
    """Return the result of an evaluation: `head`, what was activated, the average of the six, every task.

    Args:
        head: what is said of the model and the options.
        records: records of the tasks, by name.
        model: spec of the model.
    """
    tokens, units = (
        sum(record[name] for record in records.values()) for name in ("tokens", "activated_units")
    )
    return {
        **head,
        "total_parameters": sum(count_parameters(model).values()),
        **describe_activation(model, tokens, units),
        "table_metric": METRIC,
        "average_of_six": _average([records[task.name] for task in PAPER_SIX if task.name in records]),
        "tasks": records,
    }


def describe_activation(model: ModelSpec, tokens: int, units: float) -> dict[str, float | None]:
    """Return what a token activated: hidden units per MoE layer, their share (Table 3), parameters.

    Args:
        model: spec of the model.
        tokens: number of tokens that were read.
        units: hidden units that they activated, summed over MoE layers.
    """
    width = ratio = parameters = None
    if model.moe is None:
        parameters = float(sum(count_parameters(model).values()))
    elif tokens:
        width = average_activated(units, tokens, len(model.moe_layers))
        ratio, parameters = width / sum(model.moe.expert_widths), count_activated_parameters(model, width)
    return {"mean_activated_width": width, "activated_ratio": ratio, "activated_parameters": parameters}


def _average(records: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Return the means over the six tasks of the paper; None unless all six were evaluated."""
    if len(records) < len(PAPER_SIX) or not all(METRIC in record["metrics"] for record in records):
        return None
    errors = [record["metrics"].get(f"{METRIC}_stderr") for record in records]
    known = [error for error in errors if error is not None]  # a single document has none
    return {
        METRIC: sum(record["metrics"][METRIC] for record in records) / len(PAPER_SIX),
        f"{METRIC}_stderr": math.hypot(*known) / len(PAPER_SIX) if len(known) == len(PAPER_SIX) else None,
        "chance": sum(record["chance"] for record in records) / len(PAPER_SIX),
    }


def format_results_table(result: dict[str, Any]) -> str:
    """Lay out a result as text: Table 1's columns, then other tasks and what was counted.

    ARC-Challenge stands after the average, which does not count it.
    """
    tasks = result["tasks"]
    lines = []
    if any(name in tasks for name in _PAPER):
        lines += [*_align(_make_rows(result)), "", f"{METRIC} in %; AVG is the mean of the six before it"]
    for name, record in tasks.items():
        for task, metrics in (
            {} if name in _PAPER else {name: record["metrics"], **record.get("subtasks", {})}
        ).items():
            lines += [f"{task}: {_describe_metrics(metrics)}"] if metrics else []
    lines.append(_describe_training(result))
    options = {key: value for key, value in result["options"].items() if value is not None}
    lines.append(", ".join(f"{key} {value}" for key, value in options.items()))
    for key, meaning in (
        ("truncated_requests", "requests longer than the context, which lost their beginning"),
        ("windowed_requests", "answers longer than the context, read in windows"),
    ):
        counts = [
            f"{name} {record[key]} of {record['requests']}" for name, record in tasks.items() if record[key]
        ]
        lines += [f"{meaning}: {', '.join(counts)}"] if counts else []
    return "\n".join(lines) + "\n"


def _make_rows(result: dict[str, Any]) -> list[list[str]]:
    tasks, average = result["tasks"], result["average_of_six"] or {}

    def row(label: str, active: str, key: str, metric: bool = False) -> list[str]:
        def cell(record: dict[str, Any] | None) -> str:
            value = (record or {}).get("metrics", {}).get(key) if metric else (record or {}).get(key)
            return "" if value is None else f"{100 * value:.2f}"

        mean = "" if average.get(key) is None else f"{100 * average[key]:.2f}"
        return [
            label,
            active,
            *(cell(tasks.get(task.name)) for task in PAPER_SIX),
            mean,
            cell(tasks.get("arc_challenge")),
        ]

    titles = [task.title for task in PAPER_SIX]
    active = result["activated_parameters"]
    return [
        ["Method", "Activated Parameters", *titles, "AVG", PAPER_TASKS[-1].title],
        row(result["name"], "" if active is None else _shorten(active), METRIC, metric=True),
        row("standard error", "", f"{METRIC}_stderr", metric=True),
        row("chance", "", "chance"),
        row("majority class", "", "majority_class"),
        row("activated ratio", "" if result["activated_ratio"] is None else f"{100 * result['activated_ratio']:.2f}%",
            "activated_ratio"),
    ]  # fmt: skip


def _align(rows: list[list[str]]) -> list[str]:
    """Make every column as wide as its widest cell; rows that say nothing are left out."""
    rows = [row for row in rows if any(row[1:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]


def _describe_metrics(metrics: dict[str, float]) -> str:
    """List metrics, each with its standard error if it has one."""
    shown = []
    for name, value in metrics.items():
        metric, comma, rest = name.partition(",")
        error = metrics.get(f"{metric}_stderr{comma}{rest}")
        if not metric.endswith("_stderr"):
            shown.append(f"{name} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    return ", ".join(shown)


def _describe_training(result: dict[str, Any]) -> str:
    flops, tokens = result["training_flops"], result["training_tokens"]
    total = f"{_shorten(result['total_parameters'])} parameters in all"
    return total if flops is None else f"{total}, trained with {flops:.3e} FLOPs on {_shorten(tokens)} tokens"


def _shorten(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"
