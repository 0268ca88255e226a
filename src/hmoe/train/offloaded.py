"""A run whose experts lie outside of its device's memory: where, and what that moves."""

import os
from pathlib import Path

import torch

from hmoe.config.offload import choose_offload_bytes, count_expert_bytes, count_traffic_of_offload
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer, set_check_finite
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_model import build_offloaded_transformer
from hmoe.units import format_bytes


def build_offloaded_model(config: RunConfig, run: Path, device: str) -> tuple[Transformer, ExpertOffload]:
    """Return the model of a run with its first weights, and its experts, which lie elsewhere.

    Raises:
        ConfigError: for a place that the device does not have.
        CheckpointError: if the disk is full.
    """
    parallel = config.parallel
    if parallel.offload == "host" and device == "cpu":
        raise ConfigError(
            "parallel.offload = host: experts are in the host's memory already, this run computes on the CPU; "
            "nearest is disk"
        )
    folder = Path(parallel.offload_folder or run) if parallel.offload == "disk" else None
    if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"parallel.offload_folder = {folder}: must be a folder in which files can be made")
    model, offload = build_offloaded_transformer(
        config.model, config.seed, torch.device(device), folder, choose_offload_bytes(config)
    )
    model.activation_checkpointing = config.train.recomputes_blocks
    set_check_finite(model, False)  # train_step tests loss and gradients
    return model, offload


def describe_offload(config: RunConfig, offload: ExpertOffload) -> str:
    """Describe in one line where experts are, and what a step moves."""
    held, weights = choose_offload_bytes(config), count_expert_bytes(config)
    traffic, place = count_traffic_of_offload(config), offload.storage.place
    return (
        f"experts: {format_bytes(weights)} of weights, {format_bytes(held)} of them at hand; with gradients and "
        f"moments {format_bytes(4 * weights)} in {place}; a step reads up to {format_bytes(traffic.read)} and "
        f"writes {format_bytes(traffic.written)}"
    )


def describe_moves(offload: ExpertOffload, num_steps: int) -> str:
    """Describe in one line what steps have moved, and how long they waited for it."""
    moved, counts = offload.storage.moved, offload.cache.counts
    uses = counts.hits + counts.misses
    return (
        f"experts: {counts.hits / max(uses, 1):.1%} of {uses:,} uses were at hand in time, others waited "
        f"{counts.wait_seconds:.3g} s; a step read {format_bytes(moved.read_bytes // max(num_steps, 1))} and wrote "
        f"{format_bytes(moved.written_bytes // max(num_steps, 1))}"
    )
