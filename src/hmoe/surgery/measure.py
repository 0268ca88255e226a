"""What surgery measures on a text: inputs of each layer, importance of hidden units, widths that follow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from hmoe.data.long_text import encode_text
from hmoe.data.tokenizer import Tokenizer
from hmoe.model.layers import SwiGLU
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer
from hmoe.specs.widths import share_in_proportion


def cut_measured_texts(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, most: int, begin: Sequence[int]
) -> Iterator[torch.Tensor]:
    """Cut texts into sequences to measure on, and yield each as tokens_BL with B = 1.

    Args:
        tokenizer: of the model.
        texts: read one after another; none shares a sequence with the next.
        length: tokens of a sequence at most.
        most: tokens of all sequences together at most.
        begin: tokens that every text begins with.
    """
    num_tokens = 0
    for text in texts:
        ids = [*begin, *encode_text(tokenizer, text)]
        for start in range(0, len(ids), length):
            piece = ids[start : start + min(length, most - num_tokens)]
            if piece:
                yield torch.tensor([piece])
            num_tokens += len(piece)
            if num_tokens >= most:
                return


class UnitSource(NamedTuple):
    """A dense layer or an expert that hidden units are taken from, with the tokens that come to it.

    Attributes:
        gate_M: gates of its M tokens; 1 for a dense layer.
        x_MD: those tokens.
        weights: gate, up and down as `get_unit_weights` returns them.
    """

    gate_M: torch.Tensor
    x_MD: torch.Tensor
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def record_ffn_inputs(model: Transformer, batches: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Run a model over batches of tokens_BL, and return what the feed-forward part of each block reads.

    Args:
        model: whose blocks are measured.
        batches: tokens_BL of texts.

    Returns:
        x_TD for each block, T being the tokens of all batches.
    """
    parts_by_block: list[list[torch.Tensor]] = [[] for _ in model.blocks]
    device = model.embed.weight.device
    hooks = [
        block.ffn.register_forward_pre_hook(  # type: ignore[union-attr]
            lambda _, arguments, parts=parts: parts.append(arguments[0].flatten(0, 1))
        )
        for block, parts in zip(model.blocks, parts_by_block, strict=True)
    ]
    try:
        for tokens_BL in batches:
            model.hidden(tokens_BL.to(device))  # without the head, whose logits nobody reads here
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts) for parts in parts_by_block]


@torch.no_grad()
def measure_unit_importance(ffn: nn.Module, x_TD: torch.Tensor) -> list[torch.Tensor]:
    """Return the importance of every hidden unit, one tensor (h,) per expert; a dense layer is one expert.

    It is the mean over tokens of gate x |activation|, times the norm of the unit's output row. Tokens that do
    not come to an expert count as 0, so that this is the load of the expert x the importance of its unit.
    """
    return [sum_importance(source) / max(len(x_TD), 1) for source in list_unit_sources(ffn, x_TD)]


def choose_measured_widths(
    importances: Sequence[list[torch.Tensor]], total: int, multiple: int = 1
) -> tuple[int, ...]:
    """Return ascending widths of sum `total` that follow the measured importance of units.

    In each layer the `total` most important units are counted by the expert that they lie in, and the counts
    are sorted; widths are in proportion to their mean over layers. Every expert keeps at least one multiple.

    Args:
        importances: of `measure_unit_importance`, a list per layer.
        total: hidden units of all experts together.
        multiple: of which every width is one.

    Raises:
        ConfigError: if `total` cannot be shared so.
    """
    kept_E = torch.zeros(len(importances[0]), dtype=torch.int64)
    for layer in importances:
        owner_F = torch.repeat_interleave(
            torch.arange(len(kept_E)), torch.tensor([len(part) for part in layer])
        )
        best = torch.argsort(torch.cat(layer), descending=True, stable=True)[:total]
        # Sorted: layers share their widths, but the experts of one layer have no counterparts in another.
        kept_E += torch.bincount(owner_F[best.cpu()], minlength=len(kept_E)).sort().values
    return share_in_proportion(total, kept_E.tolist(), multiple)


def list_unit_sources(ffn: nn.Module, x_TD: torch.Tensor) -> list[UnitSource]:
    """Return the dense layer, or every expert with the tokens that its router sends to it."""
    if not isinstance(ffn, MoE):
        return [UnitSource(x_TD.new_ones(len(x_TD)), x_TD, get_unit_weights(ffn, 0))]
    routing = ffn.router(x_TD)
    counts = routing.num_tokens_E.tolist()
    # Zero-computation experts come last and have no units: there are more parts than experts with weights.
    tokens_by_expert = torch.split(routing.token_N, counts)[: len(ffn.widths)]
    gates_by_expert = torch.split(routing.gate_N, counts)[: len(ffn.widths)]
    return [
        UnitSource(gate_M.to(x_TD.dtype), x_TD[token_M], get_unit_weights(ffn, expert))
        for expert, (token_M, gate_M) in enumerate(zip(tokens_by_expert, gates_by_expert, strict=True))
    ]


def get_unit_weights(ffn: nn.Module, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gate, up and down of an expert, or of a dense layer, each (h, D): a row per hidden unit."""
    if isinstance(ffn, MoE):
        w_gate, w_up, w_down = ffn.expert(expert)
        return w_gate, w_up, w_down.T
    assert isinstance(ffn, SwiGLU)
    return ffn.w_gate.data, ffn.w_up.data, ffn.w_down.data


def sum_importance(source: UnitSource) -> torch.Tensor:
    """Return the importance of each hidden unit of one expert (h,), summed over its tokens."""
    hidden_Mh = compute_hidden(source.x_MD, source.weights).abs() * source.gate_M[:, None]
    norm_h: torch.Tensor = torch.linalg.vector_norm(source.weights[2], dim=1)
    return hidden_Mh.sum(0) * norm_h


def compute_hidden(x_MD: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the activations of an expert's hidden units (M, h): SwiGLU without its output."""
    return nn.functional.silu(x_MD @ weights[0].T) * (x_MD @ weights[1].T)
