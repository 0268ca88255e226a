"""Dynamic expert skipping at inference, measured on a text (Lu et al. 2024, Not All Experts are Equal)."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.model.meta import on_meta
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer

if TYPE_CHECKING:
    from hmoe.specs.model import ModelSpec


@torch.no_grad()
def median_shares(model: Transformer, inputs: list[torch.Tensor]) -> tuple[float, ...]:
    """Per MoE layer the median over tokens of (weakest chosen expert's score) / (best one's): with k = 2 the paper's beta, below
    which half of all second experts are skipped. Tokens with fewer than two experts that compute do not count.

    Args:
        model: see `check`.
        inputs: what the feed-forward part of each block reads (T, D), see `hmoe.surgery.upcycle.inputs_of`; for a model that was
            made from another, the other one's.

    Raises:
        ConfigError: see `check`.
    """
    check(model.config)
    ffns: list[Any] = [model.blocks[i].ffn for i in model.config.moe_layers]
    return tuple(_median(ffn, inputs[i], i) for ffn, i in zip(ffns, model.config.moe_layers, strict=True))


def check(config: "ModelSpec") -> None:
    """Raise ConfigError unless the router is top-k with k of at least 2, without a capacity, and skips nothing yet."""
    moe = config.moe
    if moe is None:
        raise ConfigError("skip: the model is dense; must be top-k with k of at least 2 and without a capacity")
    moe.router.check_skip()
    if moe.skip:
        raise ConfigError("skip: this model skips experts already; remove moe.skip and router.skip from the recipe")
    if moe.hyper is not None:
        moe.hyper.check_router(moe.router.with_skip(1.0))


def _median(ffn: nn.Module, x_TD: torch.Tensor, layer: int) -> float:
    """Over tokens with two experts that compute, or more: zero-computation experts are never skipped."""
    assert isinstance(ffn, MoE)
    routing = ffn.router(x_TD.to(ffn.router.weight.dtype))
    used = int(routing.num_tokens_E[: len(ffn.widths)].sum())
    token_N, expert_N = routing.token_N[:used], routing.expert_N[:used]
    score_N = routing.probs_TE[token_N, expert_N]
    num_tokens = len(x_TD)
    best_T = score_N.new_zeros(num_tokens).scatter_reduce(0, token_N, score_N, "amax")
    least_T = score_N.new_ones(num_tokens).scatter_reduce(0, token_N, score_N, "amin")
    several_T = torch.bincount(token_N, minlength=num_tokens) > 1
    if not several_T.any():
        raise ConfigError(f"skip: in layer {layer} no token of the text has two experts that compute; nothing to skip")
    return float((least_T / best_T)[several_T].median())


def with_shares(model: Transformer, shares: tuple[float, ...]) -> Transformer:
    """A model of the same weights that skips by these shares."""
    config = model.config
    assert config.moe is not None
    skipping = replace(config, moe=replace(config.moe, skip=shares))
    with on_meta():
        made = Transformer(skipping)
    made.load_state_dict(model.state_dict(), assign=True)
    return made.train(model.training)
