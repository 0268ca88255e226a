"""A trained model with other experts: dense -> mixture (Komatsuzaki et al. 2023), equal experts -> unequal, fewer or narrower ones.

All is choosing hidden units: an expert of the new model takes some units of one source, the dense layer or an old expert, so
that the new model starts as nearly the function of the old one. A wider expert repeats units with an output of zero.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.model.layers import SwiGLU
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer, build
from hmoe.specs.widths import proportional
from hmoe.surgery.prune import check_parts, choose_experts, list_lost_parts, write_router

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


class _Source(NamedTuple):
    """Where an expert's units come from: gates and tokens (M, D) on which they are measured, and weights."""

    gate_M: torch.Tensor
    x_MD: torch.Tensor
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def inputs_of(model: Transformer, batches: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What the feed-forward part of each block reads (T, D), for tokens_BL of a text."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.blocks]
    device = model.embed.weight.device
    hooks = [
        block.ffn.register_forward_pre_hook(lambda _, given, i=i: seen[i].append(given[0].flatten(0, 1)))  # type: ignore[union-attr]
        for i, block in enumerate(model.blocks)
    ]
    try:
        for tokens_BL in batches:
            model.hidden(tokens_BL.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts) for parts in seen]


@torch.no_grad()
def importance(ffn: nn.Module, x_TD: torch.Tensor) -> list[torch.Tensor]:
    """Of every hidden unit, a tensor per expert: mean over tokens of gate x |activation|, times the norm of its output row.

    Tokens that do not come to an expert count 0, so that this is load x importance of the unit. A dense layer is one expert.
    """
    return [_importance(source) / max(len(x_TD), 1) for source in _sources(ffn, x_TD)]


def measured_widths(importances: Sequence[list[torch.Tensor]], total: int, multiple: int = 1) -> tuple[int, ...]:
    """Ascending widths of sum `total`: how many of a layer's most important units lie in its least important expert, in the
    next, ..., mean over layers; every expert keeps at least one multiple.

    Raises:
        ConfigError: if `total` cannot be shared so.
    """
    kept = torch.zeros(len(importances[0]), dtype=torch.int64)
    for layer in importances:
        owner_F = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([len(part) for part in layer]))
        best = torch.argsort(torch.cat(layer), descending=True, stable=True)[:total]
        kept += torch.bincount(owner_F[best.cpu()], minlength=len(kept)).sort().values
    return proportional(total, kept.tolist(), multiple)


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


def lost_parts(source: Transformer, config: "ModelSpec") -> list[str]:
    """Parts of the source that a model of this config lacks, each with its parameters; their effect is in the errors."""
    parameters = {name: parameter.numel() for name, parameter in source.named_parameters()}
    return list_lost_parts(parameters, source.config, config)


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
    sources = None if x_TD is None else _sources(old, x_TD)
    scores = None if sources is None else [_importance(source) for source in sources]
    if isinstance(old, MoE):
        same = new.widths == old.widths  # then each stays what it is
        mass = None if scores is None else [float(score.sum()) for score in scores]
        order = list(range(len(old.widths))) if same else choose_experts(new, old, mass, x_TD)
        write_router(new, old, order)
    else:
        order = [0] * len(new.widths)
    for i, (width, number) in enumerate(zip(new.widths, order, strict=True)):
        weights = _weights(old, number)
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


def _importance(source: _Source) -> torch.Tensor:
    """Of an expert's units, summed over tokens."""
    hidden_Mh = _hidden(source.x_MD, source.weights).abs() * source.gate_M[:, None]
    norm_h: torch.Tensor = torch.linalg.vector_norm(source.weights[2], dim=1)
    return hidden_Mh.sum(0) * norm_h


def _scale(source: _Source, new: tuple[torch.Tensor, ...]) -> float:
    """Factor for the new expert's output that brings it nearest to the old one's, on the tokens that come to it."""
    whole_MD = _hidden(source.x_MD, source.weights) @ source.weights[2]
    part_MD = _hidden(source.x_MD, new) @ new[2]
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


def _weights(ffn: nn.Module, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate, up and down of an expert or of the dense layer, all as rows of hidden units."""
    if isinstance(ffn, MoE):
        w_gate, w_up, w_down = ffn.expert(number)
        return w_gate, w_up, w_down.T
    assert isinstance(ffn, SwiGLU)
    return ffn.w_gate.data, ffn.w_up.data, ffn.w_down.data


def _sources(ffn: nn.Module, x_TD: torch.Tensor) -> list[_Source]:
    """The dense layer, or every expert with the tokens that come to it."""
    if not isinstance(ffn, MoE):
        return [_Source(x_TD.new_ones(len(x_TD)), x_TD, _weights(ffn, 0))]
    routing = ffn.router(x_TD)
    counts = routing.num_tokens_E.tolist()
    pairs = zip(*(torch.split(part, counts) for part in (routing.token_N, routing.gate_N)), strict=True)
    return [
        _Source(gate_M.to(x_TD.dtype), x_TD[token_M], _weights(ffn, number))
        for number, (token_M, gate_M) in enumerate(itertools.islice(pairs, len(ffn.widths)))
    ]


def _hidden(x_MD: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return nn.functional.silu(x_MD @ weights[0].T) * (x_MD @ weights[1].T)
