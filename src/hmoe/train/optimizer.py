"""AdamW with its parameter groups, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from hmoe.config.run import OptimConfig
from hmoe.model.layers import RMSNorm
from hmoe.model.router import RouterLayer


def build_optimizer(model: nn.Module, config: OptimConfig, exact: bool = False) -> torch.optim.AdamW:
    """Return AdamW; norms, embeddings and routers decay with `decay_all` only (the paper's do).

    It is fused unless `exact`: the fused kernel rounds a number by its place in a tensor, on some processors.
    """
    # By identity: an embedding that is tied to the head is one parameter, and spared.
    spared = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, RMSNorm | RouterLayer | nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        groups[config.decay_all or id(parameter) not in spared].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[decays], "weight_decay": config.weight_decay if decays else 0.0}
            for decays in groups
            if groups[decays]
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=not exact,
        foreach=exact,
    )


def compute_learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of the update that makes `step` into `step + 1`.

    Linear warm-up, then constant (the paper), cosine to `floor`, or constant with a final linear decay (wsd).
    """
    if step < config.warmup_steps:
        # From 1 / warmup_steps on: with 0 the first step would be computed for nothing.
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    assert config.schedule_steps is not None  # checked by the config
    floor = 0.1 if config.floor is None else config.floor
    if config.schedule == "cosine":
        progress = min(1.0, (step - config.warmup_steps) / (config.schedule_steps - config.warmup_steps))
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    assert config.decay_steps is not None
    # Above 1 before the decay begins, and 0 after its end, where training at the floor goes on.
    remaining = max(0, config.schedule_steps - step) / config.decay_steps
    return config.lr * (floor + (1 - floor) * min(1.0, remaining))
