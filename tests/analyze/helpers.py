"""Tallies of planted texts, and small models and tokenizers to look into."""

from typing import Any

import torch

from hmoe.analyze.planted import PlantedText
from hmoe.analyze.tally import Tally
from hmoe.config.recipes import check_model
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.model.transformer import Transformer, build_transformer
from hmoe.runs.open_model import OpenedModel


def sum_up(planted: PlantedText) -> Tally:
    """The tally of a planted text, read at once."""
    trace = planted.text.trace
    tally = Tally(trace.widths, trace.blocks, len(planted.texts), planted.labels)
    tally.domains += planted.domains
    tally.update(planted.text)
    tally.finish()
    return tally


def build_small_model(vocab: int = 257, **moe: Any) -> Transformer:
    """Two MoE layers around a dense one, with routers that choose from token to token."""
    moe = {"widths": [5, 9, 4, 7], "dense_layers": [1], "router": {"name": "top_p", "p": 0.6}, **moe}
    model = build_transformer(check_model(dict(dim=16, layers=3, heads=2, vocab=vocab, ffn=11, moe=moe)), 0)
    with torch.no_grad():
        for layer in model.config.moe_layers:
            router: Any = model.blocks[layer].ffn.router  # type: ignore[union-attr]
            # A generator of its own: several threads may build models at once.
            draw = torch.Generator().manual_seed(layer)
            router.weight.add_(0.6 * torch.randn(router.weight.shape, generator=draw))
    return model.eval()


def open_small_model(**moe: Any) -> OpenedModel:
    return OpenedModel(build_small_model(**moe), ByteTokenizer(), 32, "small")
