"""Small models with known structure: experts that are the same, never used, for some tokens alone, or that matter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hmoe.analyze.traced_text import Ints
from hmoe.config.recipes import check_model
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer, build_transformer

MODEL_STRUCTURES = ("noise", "twins", "dead", "tokens", "memory")
PLANTED_WIDTHS = (16, 32, 48, 32, 64)
_VOCAB, _DIM = 48, 64
_CONSTANT, _MARKED = (
    0,
    1,
)  # coordinates that no layer writes: one level for all tokens, and a sign by token id
_CERTAIN = 100.0  # slope of a router's row that no other reaches
_LEVEL = 0.25  # of these coordinates
_LAYER = 1  # in which something is planted
_Generator = np.random.Generator


@dataclass(frozen=True)
class PlantedModel:
    """A model, and what was planted in it.

    Attributes:
        model: in float32, in evaluation mode.
        truth: "structure", "layer" (of the MoE layers), and "expert", or "experts" of the twins; "tokens": ids on which
            the expert fires; "successors": which token follows which in the texts that the memory is of.
    """

    model: Transformer
    truth: dict[str, Any]


def build_planted_model(structure: str, seed: int, moe: Mapping[str, Any] | None = None) -> PlantedModel:
    """Make a model whose second MoE layer has a known structure; all else is random.

    Args:
        structure: "noise": nothing. "twins": two experts are the same up to the order of their hidden units.
            "dead": the router never chooses an expert. "tokens": an expert is chosen for some token ids, and never for
            others. "memory": every token has an expert which alone knows what follows it (`plant_windows`).
        seed: of all random numbers.
        moe: keys of the section `moe` that replace those of the model.

    Raises:
        ConfigError: for a structure that there is not.
    """
    if structure not in MODEL_STRUCTURES:
        raise ConfigError(f"structure = {structure!r}, must be one of {', '.join(MODEL_STRUCTURES)}")
    section = {"widths": list(PLANTED_WIDTHS), "router": {"name": "top_k", "k": 2}, **(moe or {})}
    spec = check_model({"dim": _DIM, "layers": 2, "heads": 2, "vocab": _VOCAB, "context": 32, "moe": section})
    model = build_transformer(spec, seed).eval()
    draw = np.random.default_rng([MODEL_STRUCTURES.index(structure), seed])
    truth: dict[str, Any] = {"structure": structure, "layer": _LAYER}
    plants = {"twins": _plant_twins, "dead": _plant_dead, "tokens": _plant_tokens, "memory": _plant_memory}
    with torch.no_grad():
        for mark in (_CONSTANT, _MARKED):
            _reserve_coordinate(model, mark)
        if structure in plants:
            plants[structure](model, truth, draw)
    return PlantedModel(model, truth)


def plant_windows(
    planted: PlantedModel, seed: int, num_documents: int = 20, length: int = 32
) -> list[tuple[Ints, Ints]]:
    """Return texts of the model, as (tokens, documents) of each window; a document is a window.

    In a text for a memory four of five tokens are the successors of those before them; in others all are random.
    """
    draw = np.random.default_rng([7, seed])
    successors = planted.truth.get("successors")
    tokens = draw.integers(_VOCAB, size=(num_documents, length))
    if successors is not None:
        follows = draw.random((num_documents, length)) < 0.8
        for place in range(1, length):
            following = np.asarray(successors)[tokens[:, place - 1]]
            tokens[:, place] = np.where(follows[:, place], following, tokens[:, place])
    return [(row, np.full(length, document)) for document, row in enumerate(tokens)]


def _get_layer(model: Transformer) -> Any:
    return model.blocks[model.config.moe_layers[_LAYER]].ffn


def _choose_expert(model: Transformer, draw: _Generator) -> int:
    return int(draw.integers(len(_get_layer(model).widths)))


def _reserve_coordinate(model: Transformer, coordinate: int) -> None:
    """Let all layers keep a coordinate of the residual stream, equal for all tokens, that chooses and predicts nothing."""
    model.embed.weight[:, coordinate] = _LEVEL
    for block in model.blocks:
        parts: Any = block
        parts.attention.o_proj.weight[coordinate] = 0.0
        parts.ffn.w_down[:, coordinate] = 0.0
        parts.ffn.router.weight[:, coordinate] = 0.0
    model.head_weight[:, coordinate] = 0.0


def _plant_twins(model: Transformer, truth: dict[str, Any], draw: _Generator) -> None:
    layer = _get_layer(model)
    widths = np.asarray(layer.widths)
    twins = [(i, j) for j in range(len(widths)) for i in range(j) if widths[i] == widths[j]]
    if not twins:
        raise ConfigError(f"widths = {layer.widths}: twins need two of the same width")
    first, second = twins[int(draw.integers(len(twins)))]
    order = torch.from_numpy(draw.permutation(int(widths[first])))
    for own, other in zip(layer.expert(second)[:2], layer.expert(first)[:2], strict=True):
        own.copy_(other[order])
    layer.expert(second)[2].copy_(layer.expert(first)[2][:, order])
    truth["experts"] = [first, second]


def _plant_dead(model: Transformer, truth: dict[str, Any], draw: _Generator) -> None:
    truth["expert"] = _choose_expert(model, draw)
    row = _get_layer(model).router.weight[truth["expert"]]
    row.zero_()
    row[_CONSTANT] = -_CERTAIN


def _plant_tokens(model: Transformer, truth: dict[str, Any], draw: _Generator) -> None:
    truth["expert"] = _choose_expert(model, draw)
    truth["tokens"] = sorted(draw.choice(_VOCAB, _VOCAB // 6, replace=False).tolist())
    model.embed.weight[:, _MARKED] = -_LEVEL
    model.embed.weight[truth["tokens"], _MARKED] = _LEVEL
    row = _get_layer(model).router.weight[truth["expert"]]
    row.zero_()
    row[_MARKED] = _CERTAIN


def _plant_memory(model: Transformer, truth: dict[str, Any], draw: _Generator) -> None:
    """Let one hidden unit for each token of the widest expert write what follows it, and all tokens choose it."""
    layer = _get_layer(model)
    for block in model.blocks:
        parts: Any = block
        parts.ffn.w_down.mul_(0.2)  # whatever else is said is said softly
    truth["expert"] = expert = int(np.argmax(layer.widths))
    truth["successors"] = draw.permutation(_VOCAB).tolist()
    embedding, head = model.embed.weight.clone(), model.head_weight.clone()
    embedding[:, [_CONSTANT, _MARKED]] = 0.0
    for vectors in (embedding, head):
        vectors /= vectors.norm(dim=1, keepdim=True)
    w_gate, w_up, w_down = layer.expert(expert)
    if len(w_gate) < _VOCAB:
        raise ConfigError(
            f"widths = {layer.widths}: a memory needs an expert of at least {_VOCAB} hidden units"
        )
    w_gate[:_VOCAB], w_up[:_VOCAB] = 2 * embedding, embedding
    w_gate[_VOCAB:].zero_()
    w_down[:, :_VOCAB] = 0.3 * head[truth["successors"]].T
    row = layer.router.weight[expert]
    row.zero_()
    row[_CONSTANT] = 1.0
