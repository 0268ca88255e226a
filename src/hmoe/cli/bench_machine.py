"""`hmoe bench machine`: what this machine can do, for `hmoe plan --hardware`."""

from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.bench_options import RESULTS, BenchDevice, BenchRounds, BenchThreads
from hmoe.cli.next_steps import make_step, name_path, print_steps
from hmoe.cli.processes import (
    NumProcesses,
    StartOptions,
    choose_echo,
    join_workers,
    read_launch,
    start_processes,
)

_File = Annotated[Path, typer.Option("--out", help="YAML file to write.")]


def measure_this_machine(
    context: typer.Context,
    device: BenchDevice = "cpu",
    rounds: BenchRounds = 7,
    threads: BenchThreads = None,
    processes: NumProcesses = None,
    out: _File = Path("machine.yaml"),
) -> None:
    """Measure this machine for hmoe plan --hardware.

    Rates, latency and bandwidth, of several processes at once.
    """
    numbers, starts_others = read_launch(processes)
    if starts_others:
        start_processes(context, StartOptions(processes or 1))
    from hmoe.bench.machine import measure_machine
    from hmoe.bench.measure import BenchOptions

    with join_workers(numbers, device) as workers:
        say = choose_echo(workers)
        measure_machine(BenchOptions(device, rounds, threads, RESULTS, say, workers), out)
        if workers.rank == 0:
            say(f"written to {out}")
            size = ["--processes", str(workers.size)] if workers.size > 1 else []
            print_steps([make_step("plan", "tiny", *size, "--hardware", name_path(out))])
