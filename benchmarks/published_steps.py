"""What does `hmoe plan --hardware` say of trainings whose speed was published? Shipped machines, shapes that are known.

    python benchmarks/published_steps.py [--out FILE]

Rows marked `fitted` set rates of the machine files (of OLMoE: its ratio to the dense row above), the others were
predicted. Tokens per second and GPU. Blocks are those of hmoe (SwiGLU of equal FLOPs where the published model has
another layer); the simulation knows no recomputation of single operations. Ratios: simulated speed over published.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from hmoe.config import recipes
from hmoe.config.hardware import read_hardware
from hmoe.config.run import RunConfig
from hmoe.config.step_time import simulate_step


class Training(NamedTuple):
    """A training whose speed was published.

    Attributes:
        name, source: of it.
        machine, gpus: on which.
        layers, dim, heads, kv_heads, ffn, vocab: of the model; `ffn` of SwiGLU, or experts (number, chosen, width).
        length, sequences: tokens of a sequence, and sequences of a GPU and micro-batch.
        published: tokens per second and GPU.
        parts: micro-batches of a GPU.
        recomputes: whether blocks are computed again.
        replicas: of the weights.
        is_fitted: whether a machine file follows from it.
    """

    name: str
    source: str
    machine: str
    gpus: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn: int | tuple[int, int, int]
    vocab: int
    length: int
    sequences: int
    published: float
    parts: int = 1
    recomputes: bool = False
    replicas: int = 1
    is_fitted: bool = False


TORCHTITAN = "pytorch/torchtitan docs/performance.md, FSDP2"
FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md, FULL_SHARD"
FMS = "foundation-model-stack/fms-fsdp README, HSDP"
OLMOE = "arXiv 2409.02060, 4.1, FSDP; batch of 1,024 sequences assumed"
KEMPNER = "KempnerInstitute/KempnerForge benchmarks/moe_packed, FSDP2; H200, 2 nodes of 4"
TRAININGS = (
    Training("Llama 2 13B", TORCHTITAN, "a100", 64, 40, 5120, 40, 40, 13824, 32000, 4096, 2, 2162, is_fitted=True),
    Training("Llama 3 8B", TORCHTITAN, "a100", 64, 32, 4096, 32, 8, 14336, 128256, 8192, 1, 2973),
    Training("Llama 2 7B", FMS, "a100", 128, 32, 4096, 32, 32, 11008, 32000, 4096, 2, 3760, replicas=16),
    Training("MPT 7B", FOUNDRY, "a100", 8, 32, 4096, 32, 32, 10923, 50368, 2048, 6, 4641, parts=2),
    Training("MPT 3B", FOUNDRY, "a100", 8, 32, 2560, 20, 20, 6827, 50368, 2048, 10, 10811, parts=2),
    Training("MPT 1B", FOUNDRY, "a100", 8, 24, 2048, 16, 16, 5461, 50368, 2048, 14, 20513, parts=4),
    Training("MPT 7B", FOUNDRY, "h100", 8, 32, 4096, 32, 32, 10923, 50368, 2048, 6, 10643, is_fitted=True),
    Training("MPT 1B", FOUNDRY, "h100", 8, 24, 2048, 16, 16, 5461, 50368, 2048, 14, 45455),
    Training("MPT 1B", FOUNDRY, "h100", 64, 24, 2048, 16, 16, 5461, 50368, 2048, 20, 44402),
    Training("Llama 2 7B", FMS, "h100", 96, 32, 4096, 32, 32, 11008, 32000, 4096, 2, 7500, replicas=12),
    Training("OLMo 1B", OLMOE, "h100", 256, 16, 2048, 16, 16, 8192, 50304, 4096, 4, 37500),
    Training("OLMoE 1B-7B", OLMOE, "h100", 256, 16, 2048, 16, 16, (64, 8, 1024), 50304, 4096, 4, 23600, is_fitted=True),
    Training("8 experts of 9B", KEMPNER, "h100", 8, 24, 2048, 16, 4, (8, 2, 7168), 128256, 4096, 4, 6372, 1, True),
    Training("16 experts of 18B", KEMPNER, "h100", 8, 24, 2048, 16, 4, (16, 2, 7168), 128256, 4096, 4, 4608, 1, True),
)  # fmt: skip


def make_recipe(training: Training) -> RunConfig:
    """Return what `hmoe plan` would be asked."""
    model: dict[str, Any] = {
        "layers": training.layers, "dim": training.dim, "heads": training.heads, "kv_heads": training.kv_heads,
        "vocab": training.vocab,
    }  # fmt: skip
    if isinstance(training.ffn, int):
        model["ffn"] = training.ffn
    else:
        experts, chosen, width = training.ffn
        model["moe"] = {"widths": [width] * experts, "router": {"name": "top_k", "k": chosen}}
    parts = training.gpus * training.parts
    return recipes.check_recipe(
        {
            "model": model,
            "data": {
                "path": "unused", "sequence_length": training.length, "micro_batches": parts,
                "batch_tokens": training.length * training.sequences * parts,
            },
            "optim": {"lr": 1e-4},
            "train": {"steps": 1, "precision": "bfloat16", "activation_checkpointing": training.recomputes},
            "parallel": {"shard": "zero3", "replicas": training.replicas},
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    rows = []
    options = parser.parse_args()
    for training in TRAININGS:
        step = simulate_step(make_recipe(training), read_hardware(training.machine), training.gpus)
        speed = step.tokens_per_second / training.gpus
        rows.append(
            {**training._asdict(), "simulated": speed, "ratio": speed / training.published, "mfu": step.mfu}
        )
        print(
            f"{training.name:24} {training.gpus:4} {training.machine:5} {training.published:8,.0f} published "
            f"{speed:8,.0f} simulated, ratio {speed / training.published:.2f}, MFU {step.mfu:.0%}, waiting "
            f"{step.by_part['waiting'] / step.seconds:.0%}{'  (fitted)' if training.is_fitted else ''}"
        )
    if options.out:
        options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
