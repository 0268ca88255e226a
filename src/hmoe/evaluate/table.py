"""Results of tasks summed up, and laid out like Table 1 of the HMoE paper."""

import math
from typing import Any

from hmoe.config.counts import activated_parameters, parameters_by_part
from hmoe.data.benchmark_splits import SIX, TASKS
from hmoe.specs.model import ModelSpec

METRIC = "acc"  # all seven tasks have it; the paper does not say which accuracy it prints
_PAPER = [task.name for task in TASKS]


def summary(head: dict[str, Any], records: dict[str, dict[str, Any]], model: ModelSpec) -> dict[str, Any]:
    """The result of an evaluation: `head`, what the tasks' tokens activated, the average of the six, every task."""
    tokens, units = (sum(record[name] for record in records.values()) for name in ("tokens", "activated_units"))
    return {
        **head,
        "total_parameters": sum(parameters_by_part(model).values()),
        **activated(model, tokens, units),
        "table_metric": METRIC,
        "average_of_six": _average([records[task.name] for task in SIX if task.name in records]),
        "tasks": records,
    }


def activated(model: ModelSpec, tokens: int, units: float) -> dict[str, float | None]:
    """What a token activated: hidden units per MoE layer, their share of all (the paper's Table 3), parameters.

    Args:
        model: the model.
        tokens: that were read.
        units: hidden units that they activated, summed over MoE layers.
    """
    width = ratio = parameters = None
    if model.moe is None:
        parameters = float(sum(parameters_by_part(model).values()))
    elif tokens:
        width = units / tokens / len(model.moe_layers)
        ratio, parameters = width / sum(model.moe.expert_widths), activated_parameters(model, width)
    return {"mean_activated_width": width, "activated_ratio": ratio, "activated_parameters": parameters}


def _average(records: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Means over the six; None unless all are there."""
    if len(records) < len(SIX) or not all(METRIC in record["metrics"] for record in records):
        return None
    errors = [record["metrics"].get(f"{METRIC}_stderr") for record in records]
    known = [error for error in errors if error is not None]  # a single document has none
    return {
        METRIC: sum(record["metrics"][METRIC] for record in records) / len(SIX),
        f"{METRIC}_stderr": math.hypot(*known) / len(SIX) if len(known) == len(SIX) else None,
        "chance": sum(record["chance"] for record in records) / len(SIX),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text: Table 1's columns, ARC-Challenge outside the average, then other tasks and what was counted."""
    tasks = result["tasks"]
    lines = []
    if any(name in tasks for name in _PAPER):
        lines += [*_aligned(_rows(result)), "", f"{METRIC} in %; AVG is the mean of the six before it"]
    for name, record in tasks.items():
        for task, metrics in (
            {} if name in _PAPER else {name: record["metrics"], **record.get("subtasks", {})}
        ).items():
            lines += [f"{task}: {_others(metrics)}"] if metrics else []
    lines.append(_trained(result))
    options = {key: value for key, value in result["options"].items() if value is not None}
    lines.append(", ".join(f"{key} {value}" for key, value in options.items()))
    for key, what in (
        ("truncated_requests", "requests longer than the context, which lost their beginning"),
        ("windowed_requests", "answers longer than the context, read in windows"),
    ):
        counts = [f"{name} {r[key]} of {r['requests']}" for name, r in tasks.items() if r[key]]
        lines += [f"{what}: {', '.join(counts)}"] if counts else []
    return "\n".join(lines) + "\n"


def _rows(result: dict[str, Any]) -> list[list[str]]:
    tasks, average = result["tasks"], result["average_of_six"] or {}

    def row(label: str, active: str, key: str, metric: bool = False) -> list[str]:
        def cell(record: dict[str, Any] | None) -> str:
            value = (record or {}).get("metrics", {}).get(key) if metric else (record or {}).get(key)
            return "" if value is None else f"{100 * value:.2f}"

        mean = "" if average.get(key) is None else f"{100 * average[key]:.2f}"
        return [label, active, *(cell(tasks.get(task.name)) for task in SIX), mean, cell(tasks.get("arc_challenge"))]

    titles = [task.title for task in SIX]
    active = result["activated_parameters"]
    return [
        ["Method", "Activated Parameters", *titles, "AVG", TASKS[-1].title],
        row(result["name"], "" if active is None else _si(active), METRIC, metric=True),
        row("standard error", "", f"{METRIC}_stderr", metric=True),
        row("chance", "", "chance"),
        row("majority class", "", "majority_class"),
        row("activated ratio", "" if result["activated_ratio"] is None else f"{100 * result['activated_ratio']:.2f}%",
            "activated_ratio"),
    ]  # fmt: skip


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell; rows that say nothing are left out."""
    rows = [row for row in rows if any(row[1:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _others(metrics: dict[str, float]) -> str:
    shown = []
    for name, value in metrics.items():
        metric, comma, rest = name.partition(",")
        error = metrics.get(f"{metric}_stderr{comma}{rest}")
        if not metric.endswith("_stderr"):
            shown.append(f"{name} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    return ", ".join(shown)


def _trained(result: dict[str, Any]) -> str:
    flops, tokens = result["training_flops"], result["training_tokens"]
    total = f"{_si(result['total_parameters'])} parameters in all"
    return total if flops is None else f"{total}, trained with {flops:.3e} FLOPs on {_si(tokens)} tokens"


def _si(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"
