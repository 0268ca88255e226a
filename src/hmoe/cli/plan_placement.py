"""`hmoe plan --placement`: which process would hold which experts, and how even that is, beside other placements."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from hmoe.cli.output import print_numbers
from hmoe.cli.recipe import find_run
from hmoe.cli.table import Column, Table, render_table
from hmoe.config import recipes
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError, DataError
from hmoe.figures.placement import draw_placement
from hmoe.parallel.placement import (
    Frequencies,
    assume_frequencies,
    choose_placements,
    measure_run_load,
)
from hmoe.specs.placement import ExpertLoad, Placement, list_work
from hmoe.storage import read_json, write_atomic

_KINDS = {
    "contiguous": {"expert_placement": "contiguous", "cut_experts": False, "expert_replicas": 0},
    "even": {"expert_placement": "even", "cut_experts": False, "expert_replicas": 0},
    "even, cut": {"expert_placement": "even", "cut_experts": True, "expert_replicas": 0},
}
_BAR, _MOST_BAR = 12, 20  # characters of an even part, and of the most, if that is not too much more


def read_planned_frequencies(recipe: str, loads: Path | None, config: RunConfig) -> tuple[Frequencies, str]:
    """Return how often each expert is chosen, by MoE layer, and where that is known from.

    Args:
        recipe: that is planned; of a run folder the log tells.
        loads: JSON file with the tokens of each expert, for all layers or for each one.
        config: of the recipe.

    Raises:
        DataError: if the file cannot be used, or the log is of another model.
    """
    assumed = assume_frequencies(config)
    layers, num_experts = len(assumed), len(assumed[0])
    if loads is not None:
        per_token = sum(assumed[0])
        table = _read_loads(loads, num_experts, layers)
        return [[per_token * each / sum(row) for each in row] for row in table], f"as {loads} says"
    run = find_run(recipe)
    if run is not None:
        from hmoe.runs.expert_shares import read_frequencies

        frequencies = read_frequencies(run)
        if frequencies is not None:
            if [len(row) for row in frequencies] != [num_experts] * layers:
                raise DataError(
                    f"{run}: its log is of {len(frequencies)} layers of {len(frequencies[0])} experts, the recipe has "
                    f"{layers} of {num_experts}; give the loads, or leave the model as it is"
                )
            return frequencies, f"as {run} was measured lately"
    return assumed, "assumed to be alike for all experts"


def _read_loads(path: Path, num_experts: int, layers: int) -> list[list[float]]:
    expected = f"must be {num_experts} numbers, or such a list for each of {layers} layers"
    try:
        table = read_json(path)
    except (OSError, ValueError) as error:
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


def plan_load(
    recipe: str, config: RunConfig, num_processes: int, loads: Path | None
) -> tuple[ExpertLoad | None, float | None]:
    """Return what the busiest process would have, and the hidden units that a token activates in a layer.

    None for a recipe that places no experts.

    Raises:
        ConfigError: for loads that would have no effect, or processes that cannot hold the experts.
    """
    if not config.parallel.places_experts or num_processes == 1:
        if loads is not None:
            raise ConfigError(
                "--loads has no effect unless experts are placed on several processes; remove it"
            )
        return None, None
    check_processes(config, num_processes)
    frequencies, _ = read_planned_frequencies(recipe, loads, config)
    return measure_run_load(config, num_processes, frequencies), _measure_width(config, frequencies)


def _measure_width(config: RunConfig, frequencies: Frequencies) -> float:
    """Return the hidden units that a token activates in a layer, mean over layers."""
    assert config.model.moe is not None
    widths = config.model.moe.routed_widths
    return sum(sum(f * h for f, h in zip(row, widths, strict=True)) for row in frequencies) / len(frequencies)


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
        kind = "even" if numbers["kind"] == "contiguous" else "contiguous"
        other = choose_placements(_with(config, _KINDS[kind]), num_processes, numbers["frequencies"])
        panels = sorted([(kind, other[0]), (numbers["kind"], placements[0])], key=lambda panel: panel[0])
        write_atomic(out, draw_placement(panels, numbers["frequencies"][0]).encode())
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
        raise ConfigError(f"--placement: {recipe} has no experts; nearest is a recipe with model.moe")
    if num_processes == 1:
        raise ConfigError("--placement needs several processes, such as --processes 8")
    config = _with(config, {})
    parallel = config.parallel
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
    """Return a recipe whose experts are placed, otherwise perhaps, checked as any recipe is."""
    tree = config.model_dump(mode="json")
    parallel = {**tree["parallel"], "experts": "expert_parallel", **values}
    return recipes.check_recipe({**tree, "parallel": parallel})


def _measure(
    name: str, config: RunConfig, num_processes: int, placements: Sequence[Placement], frequencies: Frequencies,
    hardware: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what a placement comes to, mean over layers."""
    load = measure_run_load(config, num_processes, frequencies, placements)
    assert load is not None
    row: dict[str, Any] = {
        "placement": name,
        "memory": load.units + load.replicas * placements[0].num_ranks,
        "compute": load.work,
        "rows_per_token": load.rows,
        "cuts": sum(placement.num_cuts for placement in placements) / len(placements),
        "step_seconds": None,
    }
    if hardware is not None:
        from hmoe.config.hardware import read_hardware
        from hmoe.config.memory import Device, choose_unset
        from hmoe.config.step_time import simulate_step

        machine = read_hardware(hardware)
        device, width = Device(machine.device, machine.memory_bytes), _measure_width(config, frequencies)
        chosen = choose_unset(config, device, num_processes, load)
        row["step_seconds"] = simulate_step(chosen, machine, num_processes, width, load).seconds
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
        "Memory and computing of experts: the most of a process, divided by an even part; 1 is even. Computing is the "
        "mean over layers, memory of all together, replicas included.",
        "Rows a token: that the busiest process sends or receives for each token of its own.",
    ]
    placements = [Placement.from_plain(plain) for plain in numbers["placements"]]
    num_ranks, num_experts = placements[0].num_ranks, len(placements[0].widths)
    idle = max(sum(not p.count_units(rank) for rank in range(num_ranks)) for p in placements)
    if idle:
        nearest = max(
            n for n in range(1, num_ranks + 1) if numbers["processes"] % n == 0 and n <= num_experts
        )
        notes.append(
            f"{idle} of {num_ranks} processes have no expert of their own: nearest is parallel.expert_ranks={nearest}, "
            "or parallel.cut_experts=true."
        )
    if not any(row["placement"] == "even, cut" for row in numbers["rows"]):
        notes.append(
            "Cuts are not for exact mode: the sum over an expert's hidden units would be another one."
        )
    if numbers["hardware"] is not None:
        notes.append(f"Step: simulated on {numbers['hardware']}.")
    return Table(columns, numbers["rows"], notes)


def _draw_processes(placement: Placement, frequencies: Sequence[float]) -> list[str]:
    """Return a line for each process: bars of its memory and its work, and its experts from wide to narrow."""
    ranks, total = range(placement.num_ranks), sum(placement.widths)
    replicas = [(i, placement.widths[i]) for i in placement.everywhere]
    units = [placement.count_units(rank) + sum(width for _, width in replicas) for rank in ranks]
    work = list_work(placement, frequencies)
    columns = [[n * len(ranks) / total for n in units], [share * len(ranks) for share in work]]
    most = max(max(column) for column in columns)
    size = min(_MOST_BAR, round(_BAR * most))
    lines = [f"process  {'memory':{size + 5}}  {'computing':{size + 5}}  experts (hidden units)"]
    for rank in ranks:
        bars = [f"{c[rank]:.2f} {'█' * round(size * c[rank] / most):{size}}" for c in columns]
        parts = sorted(placement.list_parts(rank), key=lambda part: -part.num_units)
        names = _name_experts([(part.expert, part.num_units) for part in parts])
        lines.append(f"{rank:7}  {bars[0]}  {bars[1]}  {names}".rstrip())
    return lines + [f"every process: {_name_experts(replicas)}"] * bool(replicas)


def _name_experts(experts: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{expert} ({units})" for expert, units in experts)
