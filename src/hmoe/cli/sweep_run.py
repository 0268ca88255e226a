"""What every verb of `hmoe sweep` does with its plan: say what it costs, train, compare."""

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from hmoe.cli.output import print_note
from hmoe.cli.progress import ProgressBar
from hmoe.cli.sweep_display import SweepDisplay
from hmoe.cli.sweep_outcome import print_outcome
from hmoe.config.available_memory import read_available_bytes
from hmoe.config.memory import count_memory, read_host
from hmoe.config.run import RunConfig
from hmoe.errors import make_missing_extra_error
from hmoe.sweep.answer import describe_planned_power
from hmoe.sweep.commit import find_commit
from hmoe.sweep.cost import StepCost, SweepCost, estimate_sweep_cost, measure_step_costs
from hmoe.sweep.folder import COSTS, SweepFolder, add_seeds
from hmoe.sweep.plan import SweepPlan
from hmoe.sweep.process import Place
from hmoe.sweep.queue import SweepQueue
from hmoe.sweep.rows import read_rows
from hmoe.sweep.runs import list_planned_runs
from hmoe.units import format_count, format_flops, format_rough_duration


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run; fields are options of the command line."""

    out: Path
    processes: int | None
    add: int
    dry_run: bool
    retry: bool
    as_json: bool


def run_plan(plan: SweepPlan, options: SweepOptions) -> None:
    """Train what a plan says and its table does not hold yet, then print the comparison."""
    if plan.kind == "isoflop" and importlib.util.find_spec("scipy") is None:
        raise make_missing_extra_error("fits", "plot")
    with SweepFolder(options.out) as folder:
        plan = folder.bind_plan(plan, not options.dry_run)
        if options.add:
            plan = _add_seeds(plan, folder, options)
        configs = {
            group.name: plan.read_recipe(group, plan.seeds[0]) for group in plan.groups if group.recipe
        }
        places = _choose_places(options.processes, configs.values())
        machine = _name_machine(places)
        queue = SweepQueue(plan, folder, places, machine, find_commit(), options.retry)
        left = queue.state.waiting
        if left:
            folder.check_writable()
            costs = _measure_costs(plan, queue, machine, folder.path / COSTS)
            cost = estimate_sweep_cost(left, configs, costs, len(places))
            print_note(_describe_cost(queue, cost, places))
            if plan.baseline is not None:
                print_note(describe_planned_power(plan))
            if options.dry_run:
                _print_cost(cost, costs, options)
                return
            with SweepDisplay() as display:
                queue.run(display.show, display.print_line)
        elif options.dry_run:
            print_note("nothing is left to train")
            return
        print_outcome(plan, folder.path, queue.state.list_rows(), options.as_json)


def _add_seeds(plan: SweepPlan, folder: SweepFolder, options: SweepOptions) -> SweepPlan:
    """Return the plan with seeds more, once all that it has are trained: the same command goes on with a killed one."""
    names = {row.run for row in read_rows(folder.rows)}
    left = [run.name for run in list_planned_runs(plan) if run.name not in names]
    if left:
        print_note(f"--add {options.add}: adds seeds once the {len(left)} runs that are left are trained")
        return plan
    return folder.bind_plan(add_seeds(plan, options.add), not options.dry_run)


def _choose_places(processes: int | None, configs: Iterable[RunConfig]) -> list[Place]:
    """Return where runs are trained at a time: every GPU, else the cores, as many as memory is there for."""
    configs = list(configs)
    gpus = [] if all(config.train.device == "cpu" for config in configs) else _list_gpus()
    if gpus:
        count = processes or len(gpus)
        return [Place(i, 1, gpus[i % len(gpus)]) for i in range(count)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = read_host()
    available = min(device.memory_bytes, read_available_bytes() or device.memory_bytes)
    needed = max(count_memory(config, device.kind) for config in configs)
    count = processes or max(1, min(cores, int(available / needed)))
    return [Place(i, max(1, cores // count)) for i in range(count)]


def _list_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    names, visible = _ask_gpu_names(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if names and visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(names))]


def _ask_gpu_names() -> list[str]:
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    lines = [] if result.returncode else result.stdout.splitlines()
    return [line.partition(": ")[2].partition(" (")[0] for line in lines if line.startswith("GPU ")]


def _name_machine(places: Sequence[Place]) -> str:
    from hmoe.bench.measure import name_processor

    if places[0].gpu is not None:
        names = ", ".join(dict.fromkeys(_ask_gpu_names())) or "GPU"
        return f"{names}, {len(places)} processes"
    return f"{name_processor()}, {len(places)} x {places[0].threads} threads"


def _measure_costs(plan: SweepPlan, queue: SweepQueue, machine: str, file: Path) -> dict[str, StepCost]:
    groups = list(dict.fromkeys(run.group.name for run in queue.state.waiting))
    with ProgressBar() as bar:

        def show(name: str, done: int) -> None:
            bar.update("cost", done, len(groups), f"steps of {name}")

        return measure_step_costs(plan, groups, queue.places, machine, file, show, bar.print_line)


def _describe_cost(queue: SweepQueue, cost: SweepCost, places: Sequence[Place]) -> str:
    done = len(queue.state.rows)
    where = f"{len(places)} at a time, {places[0].threads} thread{'s' * (places[0].threads > 1)} each"
    return (
        f"{cost.num_runs} runs to train{f', {done} done' if done else ''}: {format_flops(cost.flops)} FLOPs, "
        f"about {format_rough_duration(cost.seconds)} {where}"
    )


def _print_cost(cost: SweepCost, costs: dict[str, StepCost], options: SweepOptions) -> None:
    if options.as_json:
        typer.echo(
            json.dumps({**asdict(cost), "steps": {name: asdict(each) for name, each in costs.items()}})
        )
        return
    width = max(map(len, costs), default=0)
    for name, each in costs.items():
        rate = each.flops / each.seconds
        typer.echo(
            f"{name:{width}s}  {1e3 * each.seconds:7.0f} ms a step of {format_count(each.tokens)} tokens, "
            f"{format_flops(each.flops)} FLOPs, {format_flops(rate)} FLOP/s"
        )
