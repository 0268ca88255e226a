"""Sum up the results of tasks, as Table 1 of the HMoE paper does."""

import math
from typing import Any

from hmoe.config.counts import count_activated_parameters, count_parameters
from hmoe.data.benchmark_splits import PAPER_SIX
from hmoe.model.trace import average_activated
from hmoe.runs.benchmark_scores import METRIC
from hmoe.specs.model import ModelSpec


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
