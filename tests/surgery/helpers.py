"""Small models in float64 whose units differ in importance, and what they are measured on."""

from typing import Any

import torch

from hmoe.model.transformer import Transformer, build_transformer
from hmoe.specs.model import ModelSpec
from tests.model.test_transformer import config

DENSE = {"moe": None, "ffn": 24}


def trained(**changes: Any) -> Transformer:
    """A model whose units differ in importance, as trained ones do."""
    model = build_transformer(config(**changes), 1, torch.float64).eval()
    for block in model.blocks:
        scale = torch.logspace(0, -2, len(block.ffn.w_down), dtype=torch.float64)[
            torch.randperm(len(block.ffn.w_down))
        ]
        block.ffn.w_down.data.mul_(scale[:, None] * 10)
        if hasattr(block.ffn, "router"):
            torch.nn.init.normal_(block.ffn.router.weight, std=1.0)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(0, 29, (4, 40), generator=torch.Generator().manual_seed(5))


def target(moe: dict[str, Any], **changes: Any) -> ModelSpec:
    return config(moe=moe, **changes)


FOUR = {"widths": [12, 12, 12, 12]}


def source(router: dict[str, Any], **moe: Any) -> Transformer:
    model = trained(moe={**FOUR, "router": router, **moe})
    for block in model.blocks:
        if block.ffn.router.bias_E is not None:
            block.ffn.router.bias_E.data.copy_(torch.tensor([0.5, -0.5, 1.0, -1.0]))
    return model
