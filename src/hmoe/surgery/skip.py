"""Dynamic expert skipping at inference, measured on a text (Lu et al. 2024, Not All Experts are Equal)."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.model.meta import build_on_meta
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer

if TYPE_CHECKING:
    from hmoe.specs.model import ModelSpec


@torch.no_grad()
def measure_skip_shares(model: Transformer, inputs: list[torch.Tensor]) -> tuple[float, ...]:
    """Return for each MoE layer the share below which experts are skipped.

    It is the median over tokens of the weakest chosen expert's score / the best one's. With k = 2 this is
    the paper's beta, below which half of all second experts are skipped. Tokens with fewer than two experts
    that compute do not count.

    Args:
        model: see `check`.
        inputs: what the feed-forward part of each block reads (T, D), see `hmoe.surgery.measure.record_ffn_inputs`;
            for a model that was made from another one, the inputs of that one.

    Raises:
        ConfigError: see `check`.
    """
    check_can_skip(model.config)
    ffns: list[Any] = [block.ffn for block in model.blocks]
    return tuple(_median_share(ffns[layer], inputs[layer], layer) for layer in model.config.moe_layers)


def check_can_skip(config: "ModelSpec") -> None:
    """Raise ConfigError unless the router is top-k, k at least 2, without capacity, and skips nothing yet."""
    moe = config.moe
    if moe is None:
        raise ConfigError(
            "skip: the model is dense; must be top-k with k of at least 2 and without a capacity"
        )
    moe.router.check_skip()
    if moe.skip:
        raise ConfigError(
            "skip: this model skips experts already; remove moe.skip and router.skip from the recipe"
        )
    if moe.hyper is not None:
        moe.hyper.check_router(moe.router.with_skip(1.0))  # refuses every share


def _median_share(ffn: nn.Module, x_TD: torch.Tensor, layer: int) -> float:
    """Return the median share of one layer, over its tokens with at least two experts that compute."""
    assert isinstance(ffn, MoE)
    routing = ffn.router(x_TD.to(ffn.router.weight.dtype))
    # Zero-computation experts, whose pairs come last, are never skipped: there would be nothing to save.
    num_computed = int(routing.num_tokens_E[: len(ffn.widths)].sum())
    token_N, expert_N = routing.token_N[:num_computed], routing.expert_N[:num_computed]
    score_N = routing.probs_TE[token_N, expert_N]
    num_tokens = len(x_TD)
    best_T = score_N.new_zeros(num_tokens).scatter_reduce(0, token_N, score_N, "amax")
    least_T = score_N.new_ones(num_tokens).scatter_reduce(0, token_N, score_N, "amin")
    several_T = torch.bincount(token_N, minlength=num_tokens) > 1
    if not several_T.any():
        raise ConfigError(
            f"skip: in layer {layer} no token of the text has two experts that compute; nothing to skip"
        )
    return float((least_T / best_T)[several_T].median())


def apply_skip_shares(model: Transformer, shares: tuple[float, ...]) -> Transformer:
    """Return a model with the weights of this one that skips experts by these shares, one per MoE layer."""
    assert model.config.moe is not None
    moe = replace(model.config.moe, skip=shares)
    with build_on_meta():  # no memory for weights that are replaced at once
        skipping = Transformer(replace(model.config, moe=moe))
    skipping.load_state_dict(model.state_dict(), assign=True)
    return skipping.train(model.training)
