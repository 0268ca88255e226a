"""Small models with a real tokenizer, and a folder of small benchmarks."""

import functools
from pathlib import Path
from typing import Any

import torch

from hmoe.config.recipes import check_model
from hmoe.data.benchmarks import fetch_benchmarks
from hmoe.data.tokenizer import Tokenizer, train_bpe
from hmoe.model.transformer import Transformer, build_transformer
from tests.conftest import sentences
from tests.data import wheel

LENGTH = 120  # tokens that the models read at once
ROUTERS: dict[str, dict[str, Any]] = {
    "top_k": {"widths": [8, 12, 20, 24], "router": {"name": "top_k", "k": 2}},
    "top_p": {"widths": [8, 12, 20, 24], "router": {"name": "top_p", "p": 0.6}},
}


@functools.cache
def words() -> Tokenizer:
    """BPE of 300 tokens: some words are one, others many."""
    return train_bpe([sentences(seed, 20) for seed in range(8)], 300)


def model(moe: dict[str, Any] | None, dtype: torch.dtype = torch.float64) -> Transformer:
    """Weights large enough that answers differ."""
    shape = {"dim": 24, "layers": 2, "heads": 2, "vocab": 300, "ffn": None if moe else 40, "moe": moe}
    transformer = build_transformer(check_model(shape), 0, dtype)
    with torch.no_grad():
        transformer.head_weight.mul_(3)
    return transformer.eval()


def folder(path: Path, seed: int = 0) -> Path:
    """Benchmarks of a few made-up documents."""
    fetch_benchmarks(path / "benchmarks", *wheel.write(path / "wheel", seed))
    return path / "benchmarks"
