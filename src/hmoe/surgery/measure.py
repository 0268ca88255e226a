"""What a model does on a text, measured for surgery: inputs of each layer, importance of each hidden unit, widths that follow from it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from hmoe.data.long_text import encode_text
from hmoe.data.tokenizer import Tokenizer
from hmoe.model.layers import SwiGLU
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer
from hmoe.specs.widths import proportional


def batches(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, most: int, begin: Sequence[int]
) -> Iterator[torch.Tensor]:
    """tokens_BL of one sequence each, `most` tokens in all at most, to measure on."""
    done = 0
    for text in texts:
        ids = [*begin, *encode_text(tokenizer, text)]
        for start in range(0, len(ids), length):
            piece = ids[start : start + min(length, most - done)]
            if piece:
                yield torch.tensor([piece])
            done += len(piece)
            if done >= most:
                return


class UnitSource(NamedTuple):
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
    return [sum_importance(source) / max(len(x_TD), 1) for source in list_unit_sources(ffn, x_TD)]


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


def list_unit_sources(ffn: nn.Module, x_TD: torch.Tensor) -> list[UnitSource]:
    """The dense layer, or every expert with the tokens that come to it."""
    if not isinstance(ffn, MoE):
        return [UnitSource(x_TD.new_ones(len(x_TD)), x_TD, get_unit_weights(ffn, 0))]
    routing = ffn.router(x_TD)
    counts = routing.num_tokens_E.tolist()
    pairs = zip(*(torch.split(part, counts) for part in (routing.token_N, routing.gate_N)), strict=True)
    return [
        UnitSource(gate_M.to(x_TD.dtype), x_TD[token_M], get_unit_weights(ffn, number))
        for number, (token_M, gate_M) in enumerate(itertools.islice(pairs, len(ffn.widths)))
    ]


def get_unit_weights(ffn: nn.Module, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate, up and down of an expert or of the dense layer, all as rows of hidden units."""
    if isinstance(ffn, MoE):
        w_gate, w_up, w_down = ffn.expert(number)
        return w_gate, w_up, w_down.T
    assert isinstance(ffn, SwiGLU)
    return ffn.w_gate.data, ffn.w_up.data, ffn.w_down.data


def sum_importance(source: UnitSource) -> torch.Tensor:
    """Of an expert's units, summed over tokens."""
    hidden_Mh = compute_hidden(source.x_MD, source.weights).abs() * source.gate_M[:, None]
    norm_h: torch.Tensor = torch.linalg.vector_norm(source.weights[2], dim=1)
    return hidden_Mh.sum(0) * norm_h


def compute_hidden(x_MD: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what the hidden units of an expert say about each token (M, h)."""
    return nn.functional.silu(x_MD @ weights[0].T) * (x_MD @ weights[1].T)
