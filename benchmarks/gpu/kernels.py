"""Stage 4: every launch with every tile shape: milliseconds, TFLOP/s, share of the best product, GB/s."""

import functools
from collections.abc import Mapping

import torch

from benchmarks.gpu.compiling import compile_all, list_tasks
from benchmarks.gpu.facts import product_rate
from benchmarks.gpu.layers import SIZES, make_layer, shrink
from benchmarks.gpu.setting import Case, Outcome, Setting
from benchmarks.gpu.shapes import format_shape, list_candidates
from hmoe.bench.measure import kernel_milliseconds
from hmoe.bench.shapes import LayerShape
from hmoe.bench.tiles import list_launches, time_shapes
from hmoe.kernels.ragged.launch import Launcher
from hmoe.kernels.ragged.shapes import TileShape


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases: compiling, then sizes and loads, the most useful first, since this stage gives way."""
    wanted = [
        task
        for dim, experts in ((768, 8), (1024, 8), (768, 64))
        for task in list_tasks("bfloat16", dim, experts)
    ]
    cases_by_name: dict[str, Case] = {"compile": lambda: compile_all(setting, wanted)}
    names = ("0.4B",) if setting.dry else ("0.4B", "3B", "64 experts", "0.4B short")
    for skewed in (False, True):
        for name in names:
            size = shrink(SIZES[name]) if setting.dry else SIZES[name]
            cases_by_name[f"{name} {'skewed' if skewed else 'uniform'}"] = functools.partial(
                _case, setting, size, skewed
            )
    return cases_by_name


def _case(setting: Setting, size: LayerShape, skewed: bool) -> Outcome:
    given = make_layer(size, torch.bfloat16, setting.device, skewed)
    peak, table, parts = product_rate((8192, 8192, 8192), setting), {}, []
    timer = functools.partial(kernel_milliseconds, device=setting.device)
    for name, call in list_launches(given).items():
        table[name] = rows = time_shapes(name, call, list_candidates(name, torch.bfloat16), timer)
        timed = [row for row in rows if "ms" in row]
        if timed:
            best = min(timed, key=lambda row: row["ms"])
            share, own = best["tflops"] / peak, Launcher(given).shape(name)
            used = next((row["ms"] for row in timed if tuple(row["shape"]) == own), 0)
            shape = format_shape(TileShape(*best["shape"]))
            parts.append(
                f"{name} {best['ms']:.2f} ms {best['tflops']:.0f} TF {share:.0%} {shape} (table {used:.2f})"
            )
        wrong = [
            f"{format_shape(TileShape(*row['shape']))}: {row['error']}" for row in rows if "error" in row
        ]
        parts += [f"{name} FAILED {wrong[0][:160]} ({len(wrong)})"] if wrong else []
    busiest = float(given.num_tokens_E.max() / given.num_tokens_E.double().mean())
    return " | ".join(parts), {"peak_tflops": peak, "busiest": busiest, "launches": table}
