"""The model of a run with its first weights: in one process, in several, or with experts that lie elsewhere."""

from pathlib import Path
from typing import Any, cast

import torch

from hmoe.config.run import RunConfig
from hmoe.model.transformer import Transformer, build_transformer, set_backend, set_check_finite
from hmoe.parallel.offload import ExpertOffload
from hmoe.specs.placement import Placement
from hmoe.train.compiled import compile_blocks
from hmoe.train.console import Console
from hmoe.train.offloaded import build_offloaded_model, describe_offload
from hmoe.train.processes import Processes


def open_run_model(
    config: RunConfig,
    run: Path,
    device: str,
    processes: Processes,
    placements: list[Placement] | None,
    console: Console,
) -> tuple[Transformer, ExpertOffload | None]:
    """Return the model, and its experts, if they lie outside of the device's memory.

    Raises:
        ConfigError: if they cannot lie where the run asks for it.
        CheckpointError: if the disk is full.
    """
    if config.parallel.offload == "none":
        return build_run_model(config, device, processes, placements), None
    model, offload = build_offloaded_model(config, run, device)
    console.note(describe_offload(config, offload))
    return model, offload


def build_run_model(
    config: RunConfig, device: str, processes: Processes, placements: list[Placement] | None
) -> Transformer:
    """Return the model with its first weights, ready for training steps."""
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    if processes.size == 1:
        model = build_transformer(config.model, config.seed, dtype, device)
    else:
        from hmoe.train.shared_run import build_shared_model  # noqa: PLC0415 - the engine is slow to import

        model = build_shared_model(config, cast(Any, processes), dtype, placements)
    model.activation_checkpointing = config.train.recomputes_blocks
    if config.train.compile:
        compile_blocks(model)
    set_check_finite(model, False)  # train_step tests loss and gradients
    if processes.exact:
        set_backend(model, "exact")
    return model
