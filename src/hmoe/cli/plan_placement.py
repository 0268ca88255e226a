"""`hmoe plan --placement`: which process would hold which experts, and how even that is, beside other placements."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from hmoe.cli.output import print_numbers
from hmoe.cli.recipe import find_run
from hmoe.cli.table import Column, Table, render_table
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError, DataError
from hmoe.figures.placement import draw_placement
from hmoe.parallel.placement import Frequencies, choose_placements
from hmoe.specs.placement import ExpertLoad, Placement, measure_balance, measure_load
from hmoe.storage import write_atomic

_KINDS = {
    "contiguous": {"expert_placement": "contiguous", "cut_experts": False, "expert_replicas": 0},
    "even": {"expert_placement": "even", "cut_experts": False, "expert_replicas": 0},
    "even, cut": {"expert_placement": "even", "cut_experts": True, "expert_replicas": 0},
}
_BAR = 12  # characters of an even part


def read_planned_frequencies(recipe: str, loads: Path | None, config: RunConfig) -> tuple[Frequencies, str]:
    """Return how often each expert is chosen, by MoE layer, and where that is known from.

    Args:
        recipe: that is planned; of a run folder the log tells.
        loads: JSON file with the tokens of each expert, for all layers or for each one.
        config: of the recipe.

    Raises:
        DataError: if the file cannot be used.
    """
    moe, layers = config.model.moe, len(config.model.moe_layers)
    assert moe is not None
    num_experts = len(moe.routed_widths)
    _, per_token, _ = moe.router.count_experts_per_token(num_experts)
    if loads is not None:
        table = _read_loads(loads, num_experts, layers)
        return [[per_token * each / sum(row) for each in row] for row in table], f"as {loads} says"
    run = find_run(recipe)
    if run is not None:
        from hmoe.runs.expert_shares import read_frequencies

        frequencies = read_frequencies(run)
        if frequencies is not None:
            return frequencies, f"as {run} was measured lately"
    return [[per_token / num_experts] * num_experts] * layers, "assumed to be alike for all experts"


def _read_loads(path: Path, num_experts: int, layers: int) -> list[list[float]]:
    expected = f"must be {num_experts} numbers, or such a list for each of {layers} layers"
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}; {expected}") from None
    rows = table if isinstance(table, list) and table and isinstance(table[0], list) else [table] * layers
    are_numbers = all(
        isinstance(row, list)
        and len(row) == num_experts
        and all(type(each) in (int, float) and 0 <= each < float("inf") for each in row)
        and sum(row) > 0
        for row in rows
    )
    if not are_numbers or len(rows) != layers:
        raise DataError(f"{path}: {expected}, each 0 or more and not all 0")
    return rows


def plan_load(recipe: str, config: RunConfig, num_processes: int, loads: Path | None) -> ExpertLoad | None:
    """Return what the busiest process would have, None for a recipe that places no experts.

    Raises:
        ConfigError: for loads that would have no effect, or processes that cannot hold the experts.
    """
    if not config.parallel.places_experts or num_processes == 1:
        if loads is not None:
            raise ConfigError(
                "--loads has no effect unless experts are placed on several processes; remove it"
            )
        return None
    check_processes(config, num_processes)
    frequencies, _ = read_planned_frequencies(recipe, loads, config)
    return measure_load(choose_placements(config, num_processes, frequencies), frequencies)


def check_drawing(out: Path | None) -> None:
    """Raise ConfigError for a file that no picture can be drawn into."""
    if out is not None and out.suffix != ".svg":
        raise ConfigError(f"--out {out}: must end with .svg")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist")


def print_placement(
    recipe: str, config: RunConfig, num_processes: int, loads: Path | None, out: Path | None, hardware: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Print where the experts of a recipe would live, and draw it into a file.

    Raises:
        ConfigError: for a recipe without experts, or processes that cannot hold them.
    """
    numbers = describe_placement(recipe, config, num_processes, loads, hardware)
    placements = [Placement.from_plain(plain) for plain in numbers["placements"]]
    if out is not None:
        contiguous = choose_placements(_with(config, _KINDS["contiguous"]), num_processes)
        drawn = draw_placement(
            {"contiguous": contiguous[0], numbers["kind"]: placements[0]}, numbers["frequencies"][0]
        )
        write_atomic(out, drawn.encode())
    if as_json:
        print_numbers(numbers, True)
        return
    for line in _draw_processes(placements[0], numbers["frequencies"][0]):
        typer.echo(line)
    typer.echo(f"\n{render_table(_make_table(numbers))}", nl=False)


def describe_placement(
    recipe: str, config: RunConfig, num_processes: int, loads: Path | None, hardware: str | None
) -> dict[str, Any]:
    """Return the placement of a recipe's experts, and what it and others come to."""
    if config.model.moe is None:
        raise ConfigError(f"--placement: {recipe} has no experts")
    parallel = config.parallel.model_copy(update={"experts": "expert_parallel"})
    config = config.model_copy(update={"parallel": parallel})
    check_processes(config, num_processes)
    frequencies, source = read_planned_frequencies(recipe, loads, config)
    own = {name: getattr(parallel, name) for name in _KINDS["even"]}
    kinds = {**_KINDS} if own in _KINDS.values() else {**_KINDS, "as the recipe": own}
    if parallel.exact:
        del kinds["even, cut"]
    chosen = next(name for name, values in kinds.items() if values == own)
    rows: list[dict[str, Any]] = []
    placements: list[Placement] = []
    for name, values in kinds.items():
        begin = time.perf_counter()
        of_kind = choose_placements(_with(config, values), num_processes, frequencies)
        seconds = time.perf_counter() - begin
        rows.append(_measure(name, _with(config, values), num_processes, of_kind, frequencies, hardware))
        rows[-1]["solved_in_seconds"] = seconds
        placements = of_kind if name == chosen else placements
    return {
        "processes": num_processes,
        "expert_ranks": placements[0].num_ranks,
        "kind": chosen,
        "loads": source,
        "hardware": hardware,
        "rows": rows,
        "frequencies": [list(row) for row in frequencies],
        "placements": [placement.to_plain() for placement in placements],
    }


def _with(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update=values)})


def _measure(
    name: str, config: RunConfig, num_processes: int, placements: Sequence[Placement], frequencies: Frequencies,
    hardware: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what a placement comes to, mean over layers."""
    balances = [measure_balance(p, f[: len(p.widths)]) for p, f in zip(placements, frequencies, strict=True)]
    load = measure_load(placements, frequencies)
    # Of all layers together: what one leaves uneven another makes up for.
    units = [sum(p.count_units(rank) for p in placements) for rank in range(placements[0].num_ranks)]
    row: dict[str, Any] = {
        "placement": name,
        "memory": max(units) * len(units) / max(sum(units), 1),
        "compute": sum(balance.compute for balance in balances) / len(balances),
        "rows_per_token": load.rows,
        "cuts": sum(placement.num_cuts for placement in placements) / len(placements),
        "step_seconds": None,
    }
    if hardware is not None:
        from hmoe.config.hardware import read_hardware
        from hmoe.config.memory import Device, choose_unset
        from hmoe.config.step_time import simulate_step

        machine = read_hardware(hardware)
        chosen = choose_unset(config, Device(machine.device, machine.memory_bytes), num_processes)
        row["step_seconds"] = simulate_step(chosen, machine, num_processes, load=load).seconds
    return row


def _make_table(numbers: dict[str, Any]) -> Table:
    columns = [
        Column("placement", "placement", is_text=True),
        Column("memory", "memory", lambda value: f"{value:.3f}"),
        Column("compute", "computing", lambda value: f"{value:.3f}"),
        Column("rows_per_token", "rows a token", lambda value: f"{value:.2f}"),
        Column("cuts", "cuts a layer", lambda value: f"{value:.1f}"),
        Column("step_seconds", "step, seconds", lambda value: f"{value:.3g}"),
    ]
    notes = [
        f"Layers of experts: {len(numbers['placements'])}; drawn is the first, placed: {numbers['kind']}.",
        f"Load: {numbers['loads']}.",
        "Memory and computing of experts: the most of a process, divided by the mean; 1 is even. Computing is the mean "
        "over layers, memory of all together.",
        "Rows a token: that the busiest process sends or receives for each token of its own.",
    ]
    if numbers["hardware"] is not None:
        notes.append(f"Step: simulated on {numbers['hardware']}.")
    return Table(columns, numbers["rows"], notes)


def _draw_processes(placement: Placement, frequencies: Sequence[float]) -> list[str]:
    """Return a line for each process: bars of its memory and its work, and its experts from wide to narrow."""
    work = [f * h for f, h in zip(frequencies, placement.widths, strict=False)]
    replicas = [f"every process: {_name_experts([(i, placement.widths[i]) for i in placement.everywhere])}"]
    even_units = sum(placement.count_units(rank) for rank in range(placement.num_ranks)) / placement.num_ranks
    even_work = sum(work) / placement.num_ranks
    of_replicas = sum(work[i] for i in placement.everywhere) / placement.num_ranks
    lines = [f"{'process':7}  {'memory':{_BAR + 6}}  {'computing':{_BAR + 6}}  experts (hidden units)"]
    for rank in range(placement.num_ranks):
        parts = placement.list_parts(rank)
        own = sum(work[part.expert] * part.num_units / placement.widths[part.expert] for part in parts)
        shares = placement.count_units(rank) / (even_units or 1), (own + of_replicas) / (even_work or 1)
        bars = "  ".join(f"{share:.2f} {'█' * round(_BAR * share):{_BAR + 1}}" for share in shares)
        names = _name_experts(
            sorted(((part.expert, part.num_units) for part in parts), key=lambda each: -each[1])
        )
        lines.append(f"{rank:7}  {bars}  {names}")
    return lines + replicas * bool(placement.everywhere)


def _name_experts(experts: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{expert} ({units})" for expert, units in experts)
