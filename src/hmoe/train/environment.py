"""What besides its config the bits of a run depend on; checkpoints record it, a resume tells changes."""

from collections.abc import Callable
from typing import Any

import torch

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.kernels import choice
from hmoe.train.processes import ONE_PROCESS, Processes


def describe_environment(device: str | None = None, processes: Processes = ONE_PROCESS) -> dict[str, Any]:
    """Return versions, threads and what a device can do, equal on equal machines; None: none computes."""
    common: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device is None:
        return common
    if processes.size > 1 and not processes.exact:  # else no bit depends on their number
        common["processes"] = processes.size
    return {**common, "device": device, **(_describe_cpu() if device == "cpu" else _describe_gpu())}


def compare_environment(
    state: dict[str, Any],
    config: RunConfig,
    device: str,
    warn: Callable[[str], None],
    processes: Processes = ONE_PROCESS,
) -> None:
    """Warn of what changed since a checkpoint was written and may change bits, a line each.

    Raises:
        ConfigError: if it is the kind of device.
    """
    # What was not trained yet has no number of processes.
    plain = {} if processes.exact or "device" not in state["environment"] else {"processes": 1}
    before_all = plain | state["environment"]
    for name, now in (plain | describe_environment(device, processes)).items():
        before = before_all.get(name, now)  # checkpoints written before do not hold all of it
        if before == now:
            continue
        # Other changes may round otherwise; another kind of device has other kernels,
        # and another order of every sum.
        if name == "device":
            raise ConfigError(
                f"train.device = {config.train.device}: is {now} here, the run was trained on {before}, "
                f"and another kind of device changes bits; use {before} or choose another run folder"
            )
        warn(f"{name} was {before}, is {now}: bits may differ from those of one unbroken run")


def _describe_cpu() -> dict[str, Any]:
    """Return what the CPU's libraries choose their kernels by."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu_bfloat16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "cpu_amx": bool(torch.cpu._is_amx_tile_supported()),
    }


def _describe_gpu() -> dict[str, Any]:
    """Return what the GPU's libraries choose their kernels by."""
    properties = torch.cuda.get_device_properties()
    return {
        # The name too: two GPUs of one capability may have other multiprocessors, and a
        # library other kernels for them.
        "gpu": properties.name,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "cuda": torch.version.cuda,
        "tiles": choice.describe_tiles(),
    }
