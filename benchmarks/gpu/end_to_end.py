"""Stage 7: training end to end: against the CPU, twice the same, stopped and resumed, every kind of router."""

import contextlib
import functools
import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.setting import Case, Outcome, Setting

SMALL = [
    "model.dim=64", "model.layers=2", "model.heads=2", "model.vocab=300",
    "model.moe.widths={shape: equal, total: 256, experts: 8}", "data.tokenizer=bytes",
    "data.sequence_length=64", "data.batch_tokens=512", "data.micro_batches=2", "train.log_every=1",
    "train.eval_every=0", "train.sample_every=0", "train.save_every=1000",
]  # fmt: skip
MANY = [
    "model.moe.widths={shape: equal, total: 512, experts: 32}"
]  # as many groups of experts as tiny-deepseek has
UNEQUAL = ["model.moe.widths={shape: arithmetic, total: 256, experts: 4, multiple: 16}"]
KINDS = {"top-p": "tiny-topp", "capacity": "tiny-gshard", "rectify": "tiny-rectify", "hyper": "tiny-hyper",
         "expert choice": "tiny-expert-choice", "null experts": "tiny-moepp", "bias": "tiny-deepseek"}  # fmt: skip


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases in the order of their worth."""
    needed = ("pydantic", "yaml", "rich", "tokenizers", "safetensors")
    if missing := [name for name in needed if not importlib.util.find_spec(name)]:
        return {"end to end": lambda: (f"skipped: {missing[0]} is not installed", None)}
    cases_by_name: dict[str, Case] = {
        "resumed at step 2": lambda: _resumed(setting),
        "twice": lambda: _twice(setting),
        "float32 against the CPU": lambda: _against(setting, "float32", 1e-4),
        "bfloat16 against the CPU": lambda: _against(setting, "bfloat16", 2e-2),
    }
    for name, preset in KINDS.items():
        cases_by_name[name] = functools.partial(_kind, setting, preset)
    if setting.dry:  # one run that is resumed, and one kind of router
        return {name: cases_by_name[name] for name in ("resumed at step 2", "top-p")}
    return cases_by_name


def train_run(
    folder: Path, device: str, steps: int, precision: str, *changes: str, preset: str = "tiny"
) -> list[float]:
    """Begin or continue a run in a folder, and return the loss of every step."""
    from hmoe.config import recipes
    from hmoe.runs.run_folder import RunFolder
    from hmoe.train.console import Console
    from hmoe.train.loop import train_run

    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp())  # the corpus is prepared there
    overrides = [
        *SMALL,
        f"train.device={device}",
        f"train.steps={steps}",
        f"train.precision={precision}",
        *changes,
    ]
    config = recipes.read_recipe(preset, overrides)[1]
    with contextlib.redirect_stdout(io.StringIO()), RunFolder(folder, config) as opened:
        train_run(config, opened, Console())
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _run(setting: Setting, steps: int, precision: str, *changes: str, device: str = "") -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        return train_run(Path(folder), device or setting.device, steps, precision, *UNEQUAL, *changes)


def _against(setting: Setting, precision: str, allowed: float) -> Outcome:
    ours, truth = (_run(setting, 5, precision, device=device) for device in (setting.device, "cpu"))
    worst = max(abs(a - b) for a, b in zip(ours, truth, strict=True))
    if not worst < allowed:
        raise AssertionError(f"losses differ by {worst:.1e}: {ours} and on the CPU {truth}")
    return f"losses differ by {worst:.1e} at most, the last is {ours[-1]:.4f}", {"gpu": ours, "cpu": truth}


def _twice(setting: Setting) -> Outcome:
    first, second = (_run(setting, 5, "bfloat16") for _ in range(2))
    same = first == second
    return f"{'the same' if same else 'DIFFERENT'} losses, {first[-1]!r} and {second[-1]!r}", [first, second]


def _resumed(setting: Setting) -> Outcome:
    whole = _run(setting, 4, "bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        train_run(Path(folder), setting.device, 2, "bfloat16", *UNEQUAL)
        parts = train_run(Path(folder), setting.device, 4, "bfloat16", *UNEQUAL)
    worst = max(abs(a - b) for a, b in zip(whole, parts, strict=True))
    if worst > 2e-2:
        raise AssertionError(f"losses differ by {worst:.1e}: {whole}, resumed {parts}")
    return f"4 losses, {'the same' if worst == 0 else f'differ by {worst:.1e}'}", [whole, parts]


def _kind(setting: Setting, preset: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        changes = MANY if preset == "tiny-deepseek" else []
        losses = train_run(Path(folder), setting.device, 2, "bfloat16", *changes, preset=preset)
    return f"{preset}: losses {losses}", losses
