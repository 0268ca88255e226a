"""A trained model with other experts: from dense, or from equal ones to unequal, fewer or narrower ones.

Dense models become mixtures as in sparse upcycling (Komatsuzaki et al. 2023). All is choosing hidden units:
an expert of the new model takes some units of one source, the dense layer or an old expert, so that the new
model starts as nearly the function of the old one. A wider expert repeats units with an output of zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer, build_transformer
from hmoe.surgery.extras import check_extras
from hmoe.surgery.measure import (
    UnitSource,
    compute_hidden,
    get_unit_weights,
    list_unit_sources,
    sum_importance,
)
from hmoe.surgery.prune import choose_experts, write_router

if TYPE_CHECKING:
    from hmoe.specs.model import ModelSpec

CHOICES = ("importance", "windows", "random")


@dataclass(frozen=True)
class UnitChoice:
    """Which hidden units a narrower expert takes from its source.

    Attributes:
        kind: importance (the most important ones), windows (contiguous ones, around the end), or random.
        seed: of random units, and of what is new in the model.

    Raises:
        ConfigError: for another kind.
    """

    kind: str = "importance"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CHOICES:
            raise ConfigError(f"choice = {self.kind}: must be one of {', '.join(CHOICES)}", argument="choice")


@torch.no_grad()
def upcycle_model(
    source: Transformer, config: "ModelSpec", choice: UnitChoice, inputs: Sequence[torch.Tensor] | None
) -> tuple[Transformer, list[float]]:
    """Build a model that begins as `source`, and return it with the relative errors of its MoE layers.

    Args:
        source: a trained model, dense or with experts.
        config: of the new model; but for its experts like that of the source.
        choice: which units a narrower expert takes.
        inputs: of `hmoe.surgery.measure.record_ffn_inputs`; the importance of units, and the scale of a narrower
            expert's output (least squares), are measured on them. Without them nothing is scaled, and the
            errors are NaN.

    Raises:
        ConfigError: if the new model cannot begin as the old one.
    """
    if inputs is None and choice.kind == "importance":
        raise ConfigError(
            "choice = importance: is measured on a text; give `inputs`, or choice = windows",
            argument=("choice", "inputs"),
        )
    _check_target(source, config)
    weight = source.embed.weight
    model = build_transformer(config, choice.seed, weight.dtype).to(weight.device).eval()
    _copy_equal_parameters(source, model)
    errors = []
    for layer, (source_block, block) in enumerate(zip(source.blocks, model.blocks, strict=True)):
        old: Any = source_block.ffn
        new: Any = block.ffn
        if not isinstance(new, MoE):
            continue
        x_TD = None if inputs is None else inputs[layer]
        _fill_layer(new, old, choice, layer, x_TD)
        errors.append(
            math.nan
            if x_TD is None
            else _relative_error(_run_ffn(source, old, x_TD), _run_ffn(model, new, x_TD))
        )
    return model, errors


def _copy_equal_parameters(source: Transformer, model: Transformer) -> None:
    """Copy the parameters that both models have under the same name and in the same shape."""
    parameters = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        if name in parameters and parameter.shape == parameters[name].shape:
            parameter.copy_(parameters[name])


def _check_target(source: Transformer, config: "ModelSpec") -> None:
    """Raise ConfigError if a model of this config cannot begin as the source."""
    moe = config.moe
    assert moe is not None
    before, after = set(source.config.moe_layers), set(config.moe_layers)
    if before - after:
        raise ConfigError(
            f"layers {sorted(before - after)} have experts, they cannot become dense; remove moe.dense_layers"
        )
    if not moe.router.gates_sum_to_one and not before:  # a router that was trained so may stay so
        raise ConfigError(
            f"router {moe.router.title}: gates must sum to 1, else the new model does not begin as the old one; "
            f"nearest choice: {moe.router.sum_to_one_remedy}"
        )
    check_extras(source.config, config)
    if (
        before
        and source.config.moe is not None
        and len(moe.expert_widths) > len(source.config.moe.expert_widths)
    ):
        num_experts = len(source.config.moe.expert_widths)
        raise ConfigError(
            f"widths: {len(moe.expert_widths)} experts from {num_experts}; at most as many, experts are not split"
        )


def _fill_layer(new: MoE, old: nn.Module, choice: UnitChoice, layer: int, x_TD: torch.Tensor | None) -> None:
    """Write the weights of one layer: experts, router, and a new shared expert.

    Args:
        new: the layer to be written.
        old: the source's layer, dense or with experts.
        choice: which units a narrower expert takes.
        layer: its index in the model, for seeds.
        x_TD: inputs to measure on; None: nothing is measured.
    """
    if new.shared is not None and getattr(old, "shared", None) is None:
        new.shared.w_down.zero_()  # a new shared expert adds nothing at first
    sources = None if x_TD is None else list_unit_sources(old, x_TD)
    scores = None if sources is None else [sum_importance(source) for source in sources]
    if isinstance(old, MoE):
        mass = None if scores is None else [float(score.sum()) for score in scores]
        # Experts of the same widths keep their places, whatever was measured: then nothing changes at all.
        order = (
            list(range(len(old.widths))) if new.widths == old.widths else choose_experts(new, old, mass, x_TD)
        )
        write_router(new, old, order)
    else:
        order = [0] * len(new.widths)  # all take from the dense layer
    for i, (width, origin) in enumerate(zip(new.widths, order, strict=True)):
        weights = get_unit_weights(old, origin)
        # Windows of a dense layer follow one another, so that the experts together cover it.
        start = 0 if isinstance(old, MoE) else sum(new.widths[:i])
        # A seed of its own for each expert: its units do not depend on the experts before it.
        generator = torch.Generator().manual_seed((choice.seed * 1_000_003 + layer) * 1_000_003 + i)
        score_F = None if scores is None else scores[origin]
        units, silent = _choose_units(len(weights[0]), width, choice.kind, score_F, start, generator)
        w_gate, w_up, w_down = (weight[units.to(weight.device)] for weight in weights)
        w_down = w_down * (~silent).to(w_down)[:, None]
        if sources is not None and width < len(weights[0]):
            w_down = w_down * _best_scale(sources[origin], (w_gate, w_up, w_down))
        for view, value in zip(new.expert(i), (w_gate, w_up, w_down.T), strict=True):
            view.copy_(value)


def _choose_units(
    available: int,
    width: int,
    kind: str,
    score_F: torch.Tensor | None,
    start: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the units that an expert takes, and which of them are repeated.

    A repeated unit must stay silent (its output row is 0), or it would count twice; its gate and up rows are
    copies, so that it has a gradient and can learn.

    Args:
        available: units of the source.
        width: units of the new expert.
        kind: of `UnitChoice`.
        score_F: importance of the source's units; needed for kind importance only.
        start: first unit of a window.
        generator: of random units.
    """
    if width >= available:
        units = torch.arange(width) % available
        return units, torch.arange(width) >= available
    if kind == "importance":
        assert score_F is not None
        units = torch.argsort(score_F.cpu(), descending=True, stable=True)[:width].sort().values
    elif kind == "windows":
        units = (start + torch.arange(width)) % available
    else:
        units = torch.randperm(available, generator=generator)[:width].sort().values
    return units, torch.zeros(width, dtype=torch.bool)


def _best_scale(source: UnitSource, weights: tuple[torch.Tensor, ...]) -> float:
    """Return the factor that brings a new expert's output nearest to its source's (least squares)."""
    whole_MD = compute_hidden(source.x_MD, source.weights) @ source.weights[2]
    part_MD = compute_hidden(source.x_MD, weights) @ weights[2]
    square = float((part_MD * part_MD).sum())
    return float((whole_MD * part_MD).sum()) / square if square > 0 else 1.0


def _relative_error(old_TD: torch.Tensor, new_TD: torch.Tensor) -> float:
    return float((new_TD - old_TD).norm() / old_TD.norm())


def _run_ffn(model: Transformer, ffn: nn.Module, x_TD: torch.Tensor) -> torch.Tensor:
    """Return the output of a layer of a model (T, D), with all that it has besides its experts."""
    if isinstance(ffn, MoE):
        moe_TD: torch.Tensor = ffn(x_TD, hyper_network=model.hyper_network)[0]
        return moe_TD
    dense_TD: torch.Tensor = ffn(x_TD)
    return dense_TD
