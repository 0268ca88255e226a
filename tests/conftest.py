"""Shared fixtures; nothing here reaches outside the test's own folders."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

WORDS = (
    "the a small old river house and or stone bird green under over walks sings sleeps falls rises bright dark".split()  # noqa: SIM905
)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Ids are the same in every worker: bytes may hold the time, functions show their address, tensors chance."""
    return argname if isinstance(val, bytes | torch.Tensor) or callable(val) else None


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded corpus is prepared into the tests' own cache folder, once for all workers and child processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (shared / "cache").mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def sentences(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(count))


@pytest.fixture
def corpus_jsonl(tmp_path: Path) -> Path:
    """60 documents of two domains."""
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"text": sentences(i, 5 + i % 7), "domain": "prose" if i % 3 else "code", "id": i} for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TINY = [  # overrides that shrink any preset to one that trains in milliseconds
    "model.dim=32",
    "model.layers=2",
    "model.heads=2",
    "model.vocab=300",
    "data.path=corpus",
    "data.tokenizer=bytes",
    "data.sequence_length=32",
    "data.batch_tokens=128",
    "data.micro_batches=2",
    "train.device=cpu",
    "train.eval_sequences=4",
    "train.sample_tokens=8",
]


def tiny(recipe: str) -> list[str]:
    """TINY, with widths that fit the recipe's kind."""
    from hmoe.config import recipes

    moe = recipes.read_recipe(recipe)[1].model.moe
    if moe is None:
        return [*TINY, "model.ffn=48"]
    experts, dense = (
        len(moe.expert_widths),
        ["model.moe.dense_layers=[0]", "model.ffn=48"] if moe.dense_layers else [],
    )
    if isinstance(moe.widths, tuple):
        return [*TINY, *dense, f"model.moe.widths={[16] * experts}"]
    multiple = [] if moe.widths.shape == "equal" else ["model.moe.widths.multiple=1"]
    return [*TINY, *dense, f"model.moe.widths.total={16 * experts}", *multiple]
