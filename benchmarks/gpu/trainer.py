"""Stage 6: training steps of the paper's presets: tokens/s, MFU, memory, busy share, waits by line."""

import collections
import functools
import importlib.util
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.layer_race import format_profile
from benchmarks.gpu.setting import Case, Outcome, Setting
from hmoe.bench.profile import profile_call

PEAK = 989e12  # nominal bfloat16 of an H100 or H200
PARTS = 4  # micro-batches of a step
SEQUENCE = 4096
TINY = [
    "model.dim=32",
    "model.layers=2",
    "model.heads=2",
    "model.vocab=300",
    "model.moe.widths={shape: equal, total: 64, experts: 4}",
]


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases, presets and micro-batches in the order of their worth.

    Small micro-batches recompute activations, as the presets do; those of 32k tokens do not.
    """
    if missing := [name for name in ("pydantic", "yaml") if not importlib.util.find_spec(name)]:
        return {"trainer": lambda: (f"skipped: {missing[0]} is not installed", None)}
    topk, equal, dense, large = "hmoe-0.4b-topk", "moe-0.4b-topk", "dense-0.2b", "hmoe-3b-topk"
    wanted = [(topk, 4096, True), (topk, 32768, False), (equal, 32768, False), (dense, 32768, False),
              (large, 4096, True), (equal, 4096, True), (dense, 4096, True)]  # fmt: skip
    return {
        f"{preset} {PARTS}x{tokens}{' checkpointing' if again else ''}": functools.partial(
            _case, setting, preset, tokens, again
        )
        for preset, tokens, again in (wanted[:1] if setting.dry else wanted)
    }


class Training:
    """A preset in training on random tokens, one step at a time."""

    def __init__(self, setting: Setting, preset: str, tokens: int, checkpointing: bool) -> None:
        from hmoe.config import recipes
        from hmoe.data.batches import cut_batch
        from hmoe.model.transformer import Transformer, set_check_finite
        from hmoe.train.optimizer import build_optimizer

        length = 16 if setting.dry else SEQUENCE
        tokens = 2 * length if setting.dry else tokens
        changes = [f"data.sequence_length={length}", f"data.batch_tokens={PARTS * tokens}",
                   f"data.micro_batches={PARTS}",
                   f"train.activation_checkpointing={str(checkpointing).lower()}",
                   *(TINY if setting.dry else [])]  # fmt: skip
        self.config, self.setting, self.step = recipes.read_recipe(preset, changes)[1], setting, 0
        with torch.device("meta"):
            model = Transformer(self.config.model)
        self.model = draw_weights(model.to_empty(device=setting.device))
        self.model.activation_checkpointing = checkpointing
        set_check_finite(self.model, False)
        self.optimizer = build_optimizer(self.model, self.config.optim)
        shape = (PARTS * tokens // length, length + 1)
        table = np.random.default_rng(0).integers(self.config.model.vocab, size=shape, dtype=np.int64)
        self.parts = cut_batch(np.ascontiguousarray(table[:, :-1]), np.ascontiguousarray(table[:, 1:]), PARTS)

    def __call__(self) -> Any:
        from hmoe.train.step import train_step

        record = train_step(self.model, self.optimizer, self.parts, self.config, self.step)
        self.step += 1
        return record


def draw_weights(model: Any) -> Any:
    """Draw random weights on the device: on a CPU, as `build_transformer` does, 3B parameters take half a minute."""
    with torch.no_grad():
        for value in model.buffers():
            value.zero_()
        for value in model.parameters():
            value.normal_(std=value.shape[-1] ** -0.5) if value.dim() > 1 else value.fill_(1)
        model.embed.weight.normal_(std=0.02)
    return model


def _case(setting: Setting, preset: str, tokens: int, checkpointing: bool) -> Outcome:
    on_gpu, times, losses = not setting.dry, [], []
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    training = Training(setting, preset, tokens, checkpointing)
    for _ in range(2 if setting.dry else 3 if "3b" in preset else 6):
        start = time.perf_counter()
        record = training()
        torch.cuda.synchronize() if on_gpu else None
        times.append(time.perf_counter() - start)
        losses.append(record.terms["loss"])
    figures: dict[str, Any] = {
        "seconds": times,
        "losses": losses,
        "tokens": record.tokens,
        "flops": record.flops,
    }
    figures["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    figures["waits"] = _waits(training)
    figures["profile"] = profile_call(training, setting.device, 20)
    second = statistics.median(times[-4:] if len(times) > 4 else times[-1:])
    figures |= {"tokens_per_second": record.tokens / second, "mfu": record.flops / second / PEAK}
    waits = sum(figures["waits"].values())
    most = ", ".join(f"{place} {count}" for place, count in list(figures["waits"].items())[:5])
    return (
        f"{1e3 * second:.0f} ms/step, {figures['tokens_per_second']:.0f} tokens/s, MFU {figures['mfu']:.1%}, "
        f"{figures['gigabytes']:.1f} GB, loss {losses[0]:.3f} -> {losses[-1]:.3f}; "
        f"{waits} waits: {most}; {format_profile(figures['profile'], 6)}"
    ), figures


def _waits(training: Training) -> dict[str, int]:
    """Count the waits of one step for the device, by the line that asked for them."""
    if training.setting.dry:
        training()
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        training()
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    return dict(collections.Counter(places).most_common())
