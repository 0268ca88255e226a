"""`hmoe presets`: every recipe that is shipped, what it is, and what it takes here."""

import time
from importlib import resources
from typing import Any

import typer

from hmoe.cli.arguments import AsJson
from hmoe.cli.table import Column, Table, render_table
from hmoe.config import recipes
from hmoe.units import format_count, format_rough_duration

# What training reaches of the speed of a float32 matrix product (see `measure_cpu_flops_per_second`).
TRAINING_EFFICIENCY = 0.35
_SIDE = 768  # of the matrices that are multiplied: large enough for full speed, 2 ms each on a core
_MEASURED_SECONDS = 0.15
_FAMILIES = ("quickstart", "tiny", "dense", "moe", "hmoe", "rectify")  # in this order
_COLUMNS = (
    Column("name", "preset", is_text=True),
    Column("what", "what", is_text=True),
    Column("total_parameters", "parameters", format_count),
    Column("activated_parameters", "activated", format_count),
    Column("estimated_seconds", "time here", format_rough_duration),
    Column("data", "data", lambda path: "none: embedded corpus" if path == "corpus" else str(path), True),
)
_NOTES = (
    "time here: an estimate of the whole budget on this CPU, as busy as it is now;",
    "a recipe without a budget of steps, tokens or FLOPs shows its seconds.",
    "data: the folder of token shards that must be there. `hmoe plan NAME` tells more.",
)


def print_presets(as_json: AsJson = False) -> None:
    """List the recipes that are shipped.

    Their size, the time that they take here, their data.
    """
    table = Table(_COLUMNS, list_preset_rows(measure_cpu_flops_per_second()), _NOTES)
    typer.echo(render_table(table, "json" if as_json else "text"), nl=False)


def list_preset_rows(flops_per_second: float) -> list[dict[str, Any]]:
    """Return a row for every preset: what it is, its size, and the time of its budget at this speed of training."""
    from hmoe.config.plan import make_plan

    rows = []
    for name in sorted(recipes.list_presets(), key=_rank):
        config = recipes.read_recipe(name)[1]
        plan = make_plan(config)
        flops = plan["budget_flops"]
        rows.append(
            {
                "name": name,
                "what": read_preset_summary(name),
                "total_parameters": plan["total_parameters"],
                "activated_parameters": plan["activated_parameters"],
                "budget_flops": flops,
                "estimated_seconds": config.train.seconds if flops is None else flops / flops_per_second,
                "data": config.data.path,
            }
        )
    return rows


def read_preset_summary(name: str) -> str:
    """Return the first sentence of the comment that a preset's file begins with."""
    file = resources.files("hmoe.config.presets") / f"{name}.yaml"
    comment = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
    return comment.partition(". ")[0].rstrip(".")


def measure_cpu_flops_per_second() -> float:
    """Measure the speed of a float32 matrix product for a moment, and return what training makes of it.

    Training reaches about a third of it. Measured with one thread, on two cores that had other work: matrices of
    this side at 7.1e10 FLOPs per second, beside which all of `hmoe train tiny` (2.1e12 FLOPs, 87 s) reached 0.34;
    the first 39 steps of quickstart 0.42 of the 3.6e10 that were left to it.
    """
    import numpy as np

    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    _ = matrix @ matrix  # starts the threads
    end, best = time.perf_counter() + _MEASURED_SECONDS, 0.0
    while time.perf_counter() < end:
        start = time.perf_counter()
        _ = matrix @ matrix
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - start))
    return best * TRAINING_EFFICIENCY


def _rank(name: str) -> tuple[int, float, str]:
    family, *rest = name.split("-")
    billions = rest[0].removesuffix("b") if rest else ""
    size = float(billions) if billions.replace(".", "", 1).isdigit() else 0.0
    is_paper = family in ("dense", "moe", "hmoe")
    return (_FAMILIES.index("dense") if is_paper else _FAMILIES.index(family), size, name)
