"""A trained model with other experts: dense -> mixture (Komatsuzaki et al. 2023), equal experts -> unequal, fewer or narrower ones.

All is choosing hidden units: an expert of the new model takes some units of one source, the dense layer or an old expert, so
that the new model starts as nearly the function of the old one. A wider expert repeats units with an output of zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer, build
from hmoe.surgery.extras import check_parts
from hmoe.surgery.measure import UnitSource, compute_hidden, get_unit_weights, list_unit_sources, sum_importance
from hmoe.surgery.prune import choose_experts, write_router

if TYPE_CHECKING:
    from hmoe.specs.model import ModelSpec

CHOICES = ("importance", "windows", "random")


@dataclass(frozen=True)
class Choice:
    """Which units a narrower expert takes.

    Attributes:
        kind: those of the largest importance, contiguous windows that go around, or random ones.
        seed: of random units, and of what is new in the model.

    Raises:
        ConfigError: for another kind.
    """

    kind: str = "importance"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CHOICES:
            raise ConfigError(f"--choice {self.kind}: must be one of {', '.join(CHOICES)}")


@torch.no_grad()
def upcycle(
    source: Transformer, config: "ModelSpec", choice: Choice, inputs: Sequence[torch.Tensor] | None
) -> tuple[Transformer, list[float]]:
    """A model of `config` that begins as `source`, and the relative error of each of its MoE layers, by layer.

    Args:
        source: dense, or with experts.
        config: of the new model; but for its experts like that of the source.
        choice: which units a narrower expert takes.
        inputs: of `inputs_of`; the importance of units, and the scale of a narrower expert's output (least squares), are
            measured on them. Without them nothing is scaled, and no error is known.

    Raises:
        ConfigError: if the new model cannot begin as the old one.
    """
    if inputs is None and choice.kind == "importance":
        raise ConfigError("--choice importance: is measured on a text; give --text, or --choice windows")
    _check(source, config)
    weight = source.embed.weight
    model = build(config, choice.seed, weight.dtype).to(weight.device).eval()
    theirs = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs and parameter.shape == theirs[name].shape:
            parameter.copy_(theirs[name])
    errors = []
    for number, (old, new) in enumerate(zip(source.blocks, model.blocks, strict=True)):
        old_ffn: Any = old.ffn
        new_ffn: Any = new.ffn
        if not isinstance(new_ffn, MoE):
            continue
        x_TD = None if inputs is None else inputs[number]
        _fill(new_ffn, old_ffn, choice, number, x_TD)
        errors.append(
            math.nan if x_TD is None else _error(_output(source, old_ffn, x_TD), _output(model, new_ffn, x_TD))
        )
    return model, errors


def _check(source: Transformer, config: "ModelSpec") -> None:
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
    check_parts(source.config, config)
    if before and source.config.moe is not None and len(moe.expert_widths) > len(source.config.moe.expert_widths):
        have = len(source.config.moe.expert_widths)
        raise ConfigError(
            f"widths: {len(moe.expert_widths)} experts from {have}; at most as many, experts are not split"
        )


def _fill(new: MoE, old: nn.Module, choice: Choice, layer: int, x_TD: torch.Tensor | None) -> None:
    """Weights of one layer."""
    if new.shared is not None and getattr(old, "shared", None) is None:
        new.shared.w_down.zero_()
    sources = None if x_TD is None else list_unit_sources(old, x_TD)
    scores = None if sources is None else [sum_importance(source) for source in sources]
    if isinstance(old, MoE):
        same = new.widths == old.widths  # then each stays what it is
        mass = None if scores is None else [float(score.sum()) for score in scores]
        order = list(range(len(old.widths))) if same else choose_experts(new, old, mass, x_TD)
        write_router(new, old, order)
    else:
        order = [0] * len(new.widths)
    for i, (width, number) in enumerate(zip(new.widths, order, strict=True)):
        weights = get_unit_weights(old, number)
        score = None if scores is None else scores[number]
        start = sum(new.widths[:i]) if not isinstance(old, MoE) else 0
        generator = torch.Generator().manual_seed((choice.seed * 1_000_003 + layer) * 1_000_003 + i)
        units, silent = _units(len(weights[0]), width, choice.kind, score, start, generator)
        w_gate, w_up, w_down = (weight[units.to(weight.device)] for weight in weights)
        w_down = w_down * (~silent).to(w_down)[:, None]
        if sources is not None and width < len(weights[0]):
            w_down = w_down * _scale(sources[number], (w_gate, w_up, w_down))
        for place, value in zip(new.expert(i), (w_gate, w_up, w_down.T), strict=True):
            place.copy_(value)


def _units(
    have: int, want: int, kind: str, score_F: torch.Tensor | None, start: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Units of the source, and which of them are repeated and so must stay silent."""
    if want >= have:
        units = torch.arange(want) % have
        return units, torch.arange(want) >= have
    if kind == "importance":
        assert score_F is not None
        units = torch.argsort(score_F.cpu(), descending=True, stable=True)[:want].sort().values
    elif kind == "windows":
        units = (start + torch.arange(want)) % have
    else:
        units = torch.randperm(have, generator=generator)[:want].sort().values
    return units, torch.zeros(want, dtype=torch.bool)


def _scale(source: UnitSource, new: tuple[torch.Tensor, ...]) -> float:
    """Factor for the new expert's output that brings it nearest to the old one's, on the tokens that come to it."""
    whole_MD = compute_hidden(source.x_MD, source.weights) @ source.weights[2]
    part_MD = compute_hidden(source.x_MD, new) @ new[2]
    square = float((part_MD * part_MD).sum())
    return float((whole_MD * part_MD).sum()) / square if square > 0 else 1.0


def _error(old_TD: torch.Tensor, new_TD: torch.Tensor) -> float:
    """|new - old| / |old|."""
    return float((new_TD - old_TD).norm() / old_TD.norm())


def _output(model: Transformer, ffn: nn.Module, x_TD: torch.Tensor) -> torch.Tensor:
    """What a layer of a model gives, whatever it has beside its experts."""
    if isinstance(ffn, MoE):
        moe_TD: torch.Tensor = ffn(x_TD, hyper_network=model.hyper_network)[0]
        return moe_TD
    dense_TD: torch.Tensor = ffn(x_TD)
    return dense_TD
