"""The model of a run with its first weights: in one process, in several, or with experts that lie elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from hmoe.config.offload import choose_offload_bytes, find_expert_share
from hmoe.config.run import RunConfig
from hmoe.model.transformer import Transformer, build_transformer, set_backend, set_check_finite
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_model import build_offloaded_transformer
from hmoe.parallel.placement import measure_run_load
from hmoe.specs.placement import Placement
from hmoe.train.compiled import compile_blocks
from hmoe.train.console import Console
from hmoe.train.offloaded import describe_offload, find_offload_folder
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
    with processes.together():
        folder = find_offload_folder(config, run, device, console.warn)
    share = find_expert_share(config, processes.size, measure_run_load(config, processes.size))
    opened: list[ExpertOffload] = []

    def offload_experts(model: Transformer) -> ExpertOffload:
        with processes.together():
            offload = ExpertOffload(model, folder, torch.device(device), choose_offload_bytes(config, share))
        opened.append(offload)
        return offload

    model = build_run_model(config, device, processes, placements, offload_experts)
    console.note(describe_offload(config, opened[0], share, processes.size))
    return model, opened[0]


def build_run_model(
    config: RunConfig,
    device: str,
    processes: Processes,
    placements: list[Placement] | None,
    offloads: Callable[[Transformer], ExpertOffload] | None = None,
) -> Transformer:
    """Return the model with its first weights, ready for training steps.

    Args:
        config: of the run.
        device: its kind.
        processes: that train it.
        placements: of experts on several processes.
        offloads: makes this process's experts of a model lie elsewhere; None: they are in memory.
    """
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    if processes.size > 1:
        from hmoe.train.shared_run import build_shared_model  # noqa: PLC0415 - the engine is slow to import

        model = build_shared_model(config, cast(Any, processes), dtype, placements, offloads)
    elif offloads is not None:
        model = build_offloaded_transformer(config.model, config.seed, torch.device(device), offloads)
    else:
        model = build_transformer(config.model, config.seed, dtype, device)
    model.activation_checkpointing = config.train.recomputes_blocks
    if config.train.compile:
        compile_blocks(model)
    set_check_finite(model, False)  # train_step tests loss and gradients
    if processes.exact:
        set_backend(model, "exact")
    return model
