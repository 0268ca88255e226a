"""The results of benchmarks, laid out like Table 1 of the HMoE paper, and what was counted for them."""

from collections.abc import Iterator
from typing import Any

from hmoe.cli.table import Column, Table, render_table
from hmoe.data.benchmark_splits import PAPER_SIX, PAPER_TASKS
from hmoe.runs.benchmark_scores import METRIC
from hmoe.units import format_count, format_flops

_PAPER = [task.name for task in PAPER_TASKS]
_LAST = PAPER_TASKS[-1]  # ARC-Challenge stands after the average, which does not count it


def format_results_table(result: dict[str, Any], width: int | None = None) -> str:
    """Return a result as text: Table 1's columns, then other tasks, and what was counted.

    Args:
        result: of `hmoe.evaluate.harness.evaluate_tasks`.
        width: of the lines of the table; None: as wide as the terminal.
    """
    notes = list(_list_notes(result))
    if not any(name in result["tasks"] for name in _PAPER):
        return "\n".join(notes) + "\n"
    notes.insert(0, f"{METRIC} in %; AVG is the mean of the six before it")
    columns = [
        Column("method", "Method", str, is_text=True),
        Column("activated_parameters", "Activated Parameters", _show_activated),
        *(Column(task.name, task.title, _show_percent) for task in PAPER_SIX),
        Column("average", "AVG", _show_percent),
        Column(_LAST.name, _LAST.title, _show_percent),
    ]
    rows = [row for row in _make_rows(result) if any(value is not None for value in list(row.values())[1:])]
    return render_table(Table(columns, rows, notes), width=width)


def _show_percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _show_activated(value: float | str) -> str:
    return value if isinstance(value, str) else format_count(value)


def _make_rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tasks, average = result["tasks"], result["average_of_six"] or {}

    def make_row(label: str, active: float | str | None, key: str, is_metric: bool = False) -> dict[str, Any]:
        sources = {
            name: tasks[name]["metrics"] if is_metric else tasks[name] for name in _PAPER if name in tasks
        }
        values = {name: source.get(key) for name, source in sources.items()}
        return {"method": label, "activated_parameters": active, **values, "average": average.get(key)}

    ratio = result["activated_ratio"]
    yield make_row(result["name"], result["activated_parameters"], METRIC, is_metric=True)
    yield make_row("standard error", None, f"{METRIC}_stderr", is_metric=True)
    yield make_row("chance", None, "chance")
    yield make_row("majority class", None, "majority_class")
    yield make_row(
        "activated ratio", None if ratio is None else f"{_show_percent(ratio)}%", "activated_ratio"
    )


def _list_notes(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each other task, for the training and the options, and for requests that were too long."""
    tasks = result["tasks"]
    for name, record in tasks.items():
        if name not in _PAPER:
            parts = {name: record["metrics"], **record.get("subtasks", {})}
            yield from (f"{task}: {_describe_metrics(metrics)}" for task, metrics in parts.items() if metrics)
    yield _describe_training(result)
    yield ", ".join(f"{key} {value}" for key, value in result["options"].items() if value is not None)
    for key, meaning in (
        ("truncated_requests", "requests longer than the context, which lost their beginning"),
        ("windowed_requests", "answers longer than the context, read in windows"),
    ):
        counts = [
            f"{name} {record[key]} of {record['requests']}" for name, record in tasks.items() if record[key]
        ]
        if counts:
            yield f"{meaning}: {', '.join(counts)}"


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
    total = f"{format_count(result['total_parameters'])} parameters in all"
    if flops is None:
        return total
    return f"{total}, trained with {format_flops(flops)} FLOPs on {format_count(tokens)} tokens"
