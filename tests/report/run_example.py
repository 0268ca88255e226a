"""Run folders made up for tests of the page: recipes, rows and clocks, without any training."""

import json
from pathlib import Path
from typing import Any

from hmoe.config.counts import count_training_flops
from hmoe.config.recipes import dump_recipe, read_recipe
from tests.report.inspection_example import write_inspection

WIDTHS = [8, 16, 24, 32]
_RECIPE = [
    "model.dim=32", "model.layers=2", "model.heads=2", "model.vocab=300", "data.path=corpus", "data.sequence_length=16",
    "data.batch_tokens=64", "train.steps=40", "train.sample_every=0",
]  # fmt: skip
UNEQUAL = ["model.moe.widths=[8,16,24,32]", "model.moe.router.k=2"]
EQUAL = ["model.moe.widths=[20,20,20,20]", "model.moe.router.k=2", "model.moe.parameter_penalty=0"]
DENSE = ["model.moe=null", "model.ffn=40"]


def write_run(
    folder: Path, overrides: list[str], seed: int = 0, bits: float = 2.0, shift: float = 0.2, sample: str = ""
) -> Path:
    """Write a run of 40 steps whose narrow half serves half of the pairs at first, and `shift` more at the end."""
    config = read_recipe("tiny", [*_RECIPE, *overrides, f"seed={seed}"])[1]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_recipe(config))
    width = 36 if config.model.moe else 0  # units that a token activates in each of two layers
    flops = count_training_flops(config.model, 16, 64, 2 * 64 * width)
    rows, clocks = [], []
    for step in range(1, 41):
        row: dict[str, Any] = {
            "step": step,
            "tokens": 64 * step,
            "flops": flops * step,
            "loss": 5 - step / 20,
        }
        if config.model.moe is not None:
            more = shift * min(step - 1, 20) / 20 / 2
            share = [0.25 + more, 0.25 + more, 0.25 - more, 0.25 - more]
            row |= {"parameter_penalty": 2 - step / 100, "experts_per_token": 2.0,
                    "mean_activated_width": 40.0 - step / 8, "expert_token_share": [share, share]}  # fmt: skip
        if step in (20, 40):
            row |= {
                "validation_loss": bits * 1.5 + 40 - step,
                "validation_bits_per_byte": bits + (40 - step) / 10,
            }
        if step == 40 and sample:
            row["sample"] = sample
        rows.append(row)
        clocks.append({"step": step, "seconds": step / 4, "tokens_per_second": 256.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clocks))
    return folder


HOSTILE = '<script>document.title = "taken"</script><img src="https://example.org/x.png"> & "quotes"'


def write_example(folder: Path) -> Path:
    """Write seven runs of three recipes, one of them looked into, with texts that try to be code."""
    for seed, bits in enumerate((2.0, 2.1, 1.95)):
        write_run(folder / f"unequal-{seed}", UNEQUAL, seed, bits - 0.1 - seed / 100, sample=HOSTILE)
        write_run(folder / f"equal-{seed}", EQUAL, seed, bits)
    write_run(folder / "dense", DENSE, 0, 2.0)
    write_inspection(folder / "unequal-0", WIDTHS, 2, 30)
    return folder
