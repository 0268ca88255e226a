"""A recipe in training, one step at a time, for measurements."""

from typing import Any, cast

import torch

from hmoe.config.run import RunConfig
from hmoe.data.batches import Batches
from hmoe.data.open import open_data
from hmoe.errors import ConfigError
from hmoe.model.transformer import build_transformer, set_backend, set_check_finite
from hmoe.parallel.workers import ONE_WORKER, Workers
from hmoe.train.compiled import compile_blocks
from hmoe.train.feed import OwnParts
from hmoe.train.heap import keep_freed_memory
from hmoe.train.optimizer import build_optimizer
from hmoe.train.processes import Processes, choose_process
from hmoe.train.step import train_step


class Training:
    """A recipe in training, one step at a time, by this process or by several together."""

    def __init__(self, config: RunConfig, device: str, workers: Workers = ONE_WORKER) -> None:
        keep_freed_memory()  # as the trainer does
        self.config, self.device = config, device
        if config.parallel.offload != "none":
            raise ConfigError(
                f"parallel.offload = {config.parallel.offload}: parts of a step are measured with all experts in "
                "memory; nearest is none, and benchmarks/offload.py measures whole steps with and without"
            )
        batches = Batches(open_data(config), config.data, config.seed)
        if workers.size == 1:
            self.processes: Processes = choose_process(config.parallel.exact)
            self.model = build_transformer(config.model, config.seed, device=device)
        else:
            # One process needs no engine, which is slow to import.
            from hmoe.train.shared_run import build_shared_model, make_ranks  # noqa: PLC0415

            self.processes = ranks = make_ranks(config, device, cast(Any, workers), workers.size)
            self.model = build_shared_model(config, ranks, torch.float32)
        self.parts = OwnParts(batches, workers.rank, workers.size)
        self.model.activation_checkpointing = config.train.recomputes_blocks
        set_check_finite(self.model, False)
        if config.parallel.exact:
            set_backend(self.model, "exact")
        if self.config.train.compile:
            compile_blocks(self.model)
        self.optimizer = build_optimizer(self.model, config.optim, config.parallel.exact)
        self.step, self.flops = 0, 0

    def __call__(self) -> None:
        """Train one step, and note its FLOPs."""
        parts = self.parts.parts(self.step)
        record = train_step(self.model, self.optimizer, parts, self.config, self.step, self.processes)
        self.flops = record.flops
        self.step += 1


def make_own_part(training: Training, workers: Workers) -> Training:
    """Return what a process does of a step without the others, as a training of its own."""
    if workers.size == 1:
        return training
    data, num_processes = training.config.data, workers.size
    own = {
        "batch_tokens": data.batch_tokens // num_processes,
        "micro_batches": data.num_micro_batches // num_processes,
    }
    return Training(training.config.model_copy(update={"data": data.model_copy(update=own)}), training.device)
