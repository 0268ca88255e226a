"""A run whose experts lie outside of its device's memory: where, and what that moves."""

import os
from collections.abc import Callable
from pathlib import Path

from hmoe.config.offload import choose_offload_bytes, count_expert_bytes, count_traffic_of_offload
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.parallel.offload import ExpertOffload
from hmoe.specs.offload import STORED_KINDS
from hmoe.storage import lies_in_memory
from hmoe.units import format_bytes


def find_offload_folder(
    config: RunConfig, run: Path, device: str, warn: Callable[[str], None]
) -> Path | None:
    """Return the folder for the file with a process's experts, None where they lie in the host's memory.

    Raises:
        ConfigError: for a place that there is not.
    """
    parallel = config.parallel
    if parallel.offload == "host":
        if device == "cpu":
            raise ConfigError(
                "parallel.offload = host: experts are in the host's memory already, this run computes on the CPU; "
                "nearest is disk"
            )
        return None
    folder = Path(parallel.offload_folder or run)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"parallel.offload_folder = {folder}: must be a folder in which files can be made")
    if lies_in_memory(folder):
        warn(
            f"{folder}: lies in memory (tmpfs), so offload spares none; parallel.offload_folder names another"
        )
    return folder


def describe_offload(config: RunConfig, offload: ExpertOffload, share: float, num_processes: int) -> str:
    """Describe in one line where experts are, and what a step moves; of several processes those of the fullest."""
    held, weights = choose_offload_bytes(config, share), count_expert_bytes(config, share)
    traffic = count_traffic_of_offload(config, share, num_processes)
    place = offload.storage.folder or "the host's memory"
    whose = "" if num_processes == 1 else " of the fullest process"
    stored = len(STORED_KINDS) * weights
    return (
        f"experts{whose}: {format_bytes(weights)} of weights, {format_bytes(held)} of them at hand; with gradients and "
        f"moments {format_bytes(stored)} in {place}; a step reads about {format_bytes(traffic.read)} and writes "
        f"{format_bytes(traffic.written)}"
    )


def describe_moves(offload: ExpertOffload, num_steps: int) -> str:
    """Describe in one line what steps have moved, and how long they waited for it."""
    moved, counts, steps = offload.storage.moved, offload.cache.counts, max(num_steps, 1)
    uses, read, written = counts.hits + counts.misses, moved.read_bytes // steps, moved.written_bytes // steps
    return (
        f"experts: {counts.hits / max(uses, 1):.1%} of {uses:,} uses were at hand in time, others waited "
        f"{counts.wait_seconds:.3g} s; for each step, with what came between, {format_bytes(read)} were read "
        f"and {format_bytes(written)} written"
    )
