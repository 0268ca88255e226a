"""`hmoe plan`: what a recipe will cost."""

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.output import print_note, print_numbers
from hmoe.cli.plan_control import write_control
from hmoe.cli.plan_placement import check_drawing, plan_load, print_placement
from hmoe.cli.recipe import read_recipe_argument
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.specs.placement import ExpertLoad
from hmoe.units import format_bytes, format_count, format_duration, format_flops

_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object; parameters, FLOPs per token, bytes.")]
_Memory = Annotated[
    float | None,
    typer.Option(
        metavar="GB", min=0.001, max=1000000.0, help="Plan for a GPU with this memory, not for this machine."
    ),
]

_Control = Annotated[
    bool,
    typer.Option(
        "--control",
        help="Of a run folder: print the recipe of its uniform control, equal experts that activate as many hidden "
        "units as the run was measured to.",
    ),
]
_Placement = Annotated[
    bool,
    typer.Option(
        "--placement",
        help="Print which process holds which experts, and how even that is, beside the same number on each.",
    ),
]
_Loads = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSON file with the tokens of each expert, a list for all layers or one for each. Default: as a run "
        "folder was measured, else alike for all.",
    ),
]
_Out = Annotated[
    Path | None,
    typer.Option(
        help="With --control: the .yaml file to write, by default standard output. With --placement: an .svg file "
        "to draw into."
    ),
]


_Processes = Annotated[
    int, typer.Option("--processes", min=1, max=2**20, help="Processes that share the run, on GPUs one each.")
]
_Hardware = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Also tell what a step takes on this machine, or on several: a shipped one (a100, a800, h100, h800) or a "
        "YAML file, as `hmoe bench machine` writes it.",
    ),
]


def plan_recipe(
    context: typer.Context,
    recipe: Recipe,
    as_json: _AsJson = False,
    memory: _Memory = None,
    processes: _Processes = 1,
    hardware: _Hardware = None,
    placement: _Placement = False,
    loads: _Loads = None,
    control: _Control = False,
    out: _Out = None,
) -> None:
    """Tell size, cost and memory of a recipe beforehand.

    Without making a single tensor.
    """
    if control:
        for flag, is_given in {
            "--memory": memory,
            "--processes": processes > 1,
            "--hardware": hardware,
            "--placement": placement,
            "--loads": loads,
        }.items():
            if is_given:
                raise ConfigError(f"{flag} has no effect with --control; remove one of them")
        write_control(recipe, context.args, out, as_json)
        return
    if out is not None and not placement:
        raise ConfigError("--out has no effect without --control or --placement; remove it")
    if memory is not None and (hardware is not None or placement):
        why = "--hardware, which says it" if hardware is not None else "--placement"
        raise ConfigError(f"--memory has no effect with {why}; remove one of them")
    config = read_recipe_argument(recipe, context.args)[1]
    if placement:
        check_drawing(out)
        print_placement(recipe, config, processes, loads, out, hardware, as_json)
        return
    load, width = plan_load(recipe, config, processes, loads)
    print_plan(config, as_json, PlannedMachine(memory, processes, hardware, load, width))


class PlannedMachine(NamedTuple):
    """What a recipe is planned for: this machine, unless it says otherwise.

    Attributes:
        memory: of a GPU, in GB.
        num_processes: that share the run.
        hardware: name or file.
        load: of the busiest process, where experts are placed.
        width: hidden units that a token activates in a layer then.
    """

    memory: float | None = None
    num_processes: int = 1
    hardware: str | None = None
    load: ExpertLoad | None = None
    width: float | None = None


HERE = PlannedMachine()


def print_plan(config: RunConfig, as_json: bool, machine: PlannedMachine = HERE) -> None:
    """Print the plan of a recipe."""
    numbers = describe_plan(config, machine)
    if config.model.moe is not None and config.model.moe.warning:
        print_note(f"warning: {config.model.moe.warning}")
    if as_json:
        print_numbers(numbers, as_json)
    else:
        _print_sections(numbers, machine == HERE)


def describe_plan(config: RunConfig, machine: PlannedMachine = HERE) -> dict[str, Any]:
    """Return the exact numbers of a plan."""
    from hmoe.config.hardware import read_hardware
    from hmoe.config.memory import Device, read_host
    from hmoe.config.plan import make_plan

    memory, num_processes = machine.memory, machine.num_processes
    if machine.hardware is not None:
        hardware = read_hardware(machine.hardware)
        plan = make_plan(config, None, num_processes, hardware, machine.load, machine.width)
        return plan | {"memory_assumed": f"that of {machine.hardware}, of each process"}
    on_gpu = config.train.device == "cuda" or (config.train.device == "auto" and memory is not None)
    size = read_host().memory_bytes // num_processes if memory is None else round(memory * 1e9)
    plan = make_plan(config, Device("cuda" if on_gpu else "cpu", size), num_processes, None, machine.load)
    return plan | {"memory_assumed": _describe_assumption(on_gpu, memory, num_processes)}


def _describe_assumption(on_gpu: bool, memory: float | None, num_processes: int) -> str:
    if memory is None and num_processes > 1 and not on_gpu:
        return f"this machine's, shared by {num_processes} processes"
    if memory is not None:
        return f"as given, of a {'GPU' if on_gpu else 'CPU'}"
    mismatch = " although it is for a GPU" if on_gpu else ""
    return f"this machine's{mismatch}; --memory GB plans for a GPU"


def _print_sections(numbers: dict[str, Any], is_here: bool) -> None:
    """Print numbers as people read them, parts that are zero left out, no wider than the terminal."""
    sections = {
        "parameters": list(_list_sizes(numbers)),
        "cost": list(_list_costs(numbers)),
        "memory of each process" if "processes" in numbers else "memory": list(
            _list_memory(numbers, is_here)
        ),
        "expert offload": list(_list_offload(numbers)),
        "communication of each process and step": list(_list_sent(numbers)),
        "step, simulated": list(_list_step(numbers)),
    }
    sections = {heading: rows for heading, rows in sections.items() if rows}
    size = max(len(label) for rows in sections.values() for label, _ in rows)
    width = max(40, min(shutil.get_terminal_size().columns, 100))
    for i, (heading, rows) in enumerate(sections.items()):
        typer.echo(f"{chr(10) if i else ''}{heading}")
        for label, value in rows:
            first = f"  {label.ljust(size)}  "
            typer.echo(textwrap.fill(value, width, initial_indent=first, subsequent_indent=" " * len(first)))


def _list_sizes(numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "total", format_count(numbers["total_parameters"])
    activated, (least, most) = numbers["activated_parameters"], numbers["activated_parameters_range"]
    span = "" if least == most else f", from {format_count(least)} to {format_count(most)}"
    yield "activated", f"{format_count(activated)}{span}"
    yield "assumed", numbers["activated_assumption"]
    if numbers["expert_widths"]:
        yield "expert widths", ", ".join(map(str, numbers["expert_widths"]))
    yield from ((part, format_count(size)) for part, size in numbers["parameters_by_part"].items() if size)


def _list_costs(numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "FLOPs per token", format_flops(numbers["flops_per_token"])
    yield "by 6ND", format_flops(numbers["flops_per_token_6nd"])
    if numbers["budget_tokens"] is None:
        yield "budget", "of seconds alone"
        return
    yield (
        "budget",
        (
            f"{format_count(numbers['budget_tokens'])} tokens in {numbers['budget_steps']:,} steps, "
            f"{format_flops(numbers['budget_flops'])} FLOPs"
        ),
    )


def _list_memory(numbers: dict[str, Any], is_here: bool) -> Iterator[tuple[str, str]]:
    yield "micro-batches", f"{numbers['micro_batches']:,} of {numbers['micro_batch_tokens']:,} tokens"
    yield "activation checkpointing", _say(numbers["activation_checkpointing"])
    parts = numbers["memory_by_part_bytes"].items()
    yield from ((part, format_bytes(size)) for part, size in parts if size)
    moment = numbers["memory_moment"]
    yield "in all", format_bytes(numbers["memory_bytes"]) + (f", {moment}" if moment else "")
    owner = "this machine's " if is_here else ""
    yield "fits", f"in {owner}{format_bytes(numbers['device_memory_bytes'])}: {_say(numbers['fits'])}"
    if advice := numbers.get("offload_advice"):
        fits = "which fits" if advice["fits"] else "which does not fit either"
        most = advice["offload_bytes"]
        least = f" with parallel.offload_bytes={most}" if most is not None else ""
        size = format_bytes(advice["memory_bytes"])
        yield f"parallel.offload={advice['offload']}", f"{size}{least}, {fits}"
    yield "memory assumed", numbers["memory_assumed"]
    if "checkpoint_bytes" in numbers:
        yield (
            "checkpoint copies",
            f"{format_bytes(numbers['checkpoint_bytes'])} of the host, while one is written",
        )
    yield "left out", "; ".join(numbers["memory_left_out"])


def _list_offload(numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    costs = numbers.get("offload")
    if costs is None:
        return
    at_hand, weights = (format_bytes(costs[f"{name}_bytes"]) for name in ("at_hand", "weight"))
    yield "weights at hand", f"{at_hand} of {weights}"
    where = "in a file" if costs["place"] == "disk" else "in the host's memory"
    yield "with moments, gradients", f"{format_bytes(costs['stored_bytes'])} {where}"
    yield "a step reads", f"about {format_bytes(costs['read_bytes'])}"
    yield "a step writes", f"about {format_bytes(costs['written_bytes'])}"
    without = format_bytes(costs["memory_without_bytes"])
    spared = f"{format_bytes(costs['memory_bytes'])} instead of {without}"
    fits = "not needed: all fits without" if costs["fits_without"] else "needed: without, it does not fit"
    yield "memory", f"{spared}; {fits}"
    if "step_without_seconds" not in costs:
        yield "a step takes", "not known; give --hardware FILE, of `hmoe bench machine`"
        return
    step, before = numbers["step"], costs["step_without_seconds"]
    waits = step["by_part_seconds"].get("waiting for experts elsewhere", 0.0)
    yield "moving takes", f"{step['moving_seconds']:.3g} s, of which {waits:.3g} s are waited for"
    yield "a step takes", f"{step['seconds'] / before:.2f} times as long as without ({before:.3g} s)"


def _list_sent(numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    words = {
        "gathered": "weights, to others",
        "reduced": "gradients, to who keeps them",
        "repeated": "gradients, between replicas",
        "travelling": "tokens, to experts and back",
    }
    for name, size in numbers.get("sent_bytes", {}).items():
        if size:
            yield words[name], format_bytes(size)


def _list_step(numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    step = numbers.get("step")
    if step is None:
        return
    yield "seconds", format_duration(step["seconds"]) if step["seconds"] > 120 else f"{step['seconds']:.3g}"
    yield "tokens per second", f"{step['tokens_per_second']:,.0f}"
    yield "MFU", f"{step['mfu']:.1%}"
    for name, seconds in sorted(step["by_part_seconds"].items(), key=lambda item: -item[1]):
        if seconds >= 0.001 * step["seconds"]:
            yield name, f"{seconds / step['seconds']:.1%}"
    yield "communication", f"{step['communication_seconds'] / step['seconds']:.1%} of the step, hidden or not"
    if step["budget_seconds"] is not None:
        yield "budget", format_duration(step["budget_seconds"])
    yield "left out", "; ".join(step["left_out"])


def _say(value: bool) -> str:
    return "yes" if value else "no"
