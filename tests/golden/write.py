"""Golden losses of 50 steps of small models in float64, on the embedded corpus as bytes.

`make golden` writes them anew.
"""

import json
from pathlib import Path

from hmoe.config import recipes
from hmoe.data.batches import Batches
from hmoe.data.corpus import open_corpus
from hmoe.model.transformer import build_transformer, set_check_finite
from hmoe.train.optimizer import build_optimizer
from hmoe.train.step import train_step
from tests.conftest import tiny

STEPS = 50
FOLDER = Path(__file__).parent
TOP_P = ["model.moe.router={name: top_p, p: 0.6}", "model.moe.router_entropy=0.03", "model.moe.router_z=1e-3"]
CASES = {
    "tiny": ("tiny", []),
    "tiny-equal": ("tiny-equal", []),
    "tiny-dense": ("tiny-dense", []),
    "tiny-control": ("tiny-control", []),
    "tiny-topp": ("tiny", TOP_P),
    "tiny-mixed": (
        "tiny",
        ["model.moe.dense_layers=[1]", "model.ffn=40", "model.kv_heads=1", "model.tied=true"],
    ),
}


def losses(name: str) -> list[float]:
    """Total loss of each step."""
    recipe, overrides = CASES[name]
    config = recipes.read_recipe(recipe, [*tiny(recipe), "train.precision=float64", *overrides])[1]
    batches = Batches(open_corpus("bytes"), config.data, config.seed)
    import torch

    model = build_transformer(config.model, config.seed, torch.float64)
    set_check_finite(model, False)
    optimizer = build_optimizer(model, config.optim)
    return [
        train_step(model, optimizer, batches.parts(i), config, i).terms["loss_total"] for i in range(STEPS)
    ]


def main() -> None:
    for name in CASES:
        (FOLDER / f"{name}.json").write_text(json.dumps(losses(name), indent=0) + "\n")


if __name__ == "__main__":
    main()
