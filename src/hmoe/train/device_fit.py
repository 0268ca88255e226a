"""How a run fits its device: what it leaves unset is chosen, or it is refused before anything is made."""

import torch

from hmoe.config.memory import Device, choose_unset, count_memory, describe_choice, read_host
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.parallel.placement import measure_run_load
from hmoe.train.console import Console
from hmoe.train.processes import Processes
from hmoe.units import format_bytes


def find_device(config: RunConfig, processes: Processes) -> Device:
    """Return the device of each process: its kind, and the memory that it has.

    Raises:
        ConfigError: if there is none of the kind that the run asks for.
    """
    wanted = config.train.device
    kind = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda: this PyTorch sees no CUDA device; use cpu or auto")
    # All of its memory, not what is free now: equal devices choose equally.
    if kind == "cuda":
        return Device(kind, torch.cuda.mem_get_info()[1])
    host = read_host()
    return host._replace(memory_bytes=host.memory_bytes // processes.local_size)


def fit_config(config: RunConfig, device: Device, console: Console, processes: Processes) -> RunConfig:
    """Return the config with what it leaves unset chosen for the device, and say what was chosen.

    Raises:
        ConfigError: if the device has too little memory, or the processes cannot share the batch.
    """
    check_processes(config, processes.size)
    load = measure_run_load(config, processes.size)
    chosen = choose_unset(config, device, processes.size, load)
    check_processes(chosen, processes.size)
    needed = count_memory(chosen, device.kind, processes.size, load)
    if needed > device.memory_bytes:
        ways = ["raise data.micro_batches"] * (
            config.data.micro_batches not in (None, config.data.batch_sequences)
        )
        ways += ["set train.activation_checkpointing"] * (config.train.activation_checkpointing is False)
        if config.parallel.offload != "none":
            ways.append("lower parallel.offload_bytes")
        elif config.model.moe is not None and not config.parallel.exact:
            placed = processes.size == 1 or config.parallel.places_experts
            ways.append(
                "set parallel.offload" + ("" if placed else " and parallel.experts = expert_parallel")
            )
        advice = " or ".join(
            [", ".join(["lower model sizes", *ways][:-1]), ways[-1]] if ways else ["lower model sizes"]
        )
        raise ConfigError(
            f"the run needs about {format_bytes(needed)} on {device.kind}, "
            f"which has {format_bytes(device.memory_bytes)}; see `hmoe plan`, then {advice}"
        )
    # On a CPU, one micro-batch without recomputation needs no word: it is what everybody expects.
    plain = (config.data.micro_batches or processes.size, bool(config.train.activation_checkpointing))
    usual = (
        device.kind == "cpu" and (chosen.data.micro_batches, chosen.train.activation_checkpointing) == plain
    )
    if chosen != config and not usual:
        console.note(describe_choice(chosen, device, processes.size, load))
    return chosen
