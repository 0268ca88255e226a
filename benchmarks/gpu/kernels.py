"""Stage 4: every launch with every tile shape: milliseconds, TFLOP/s, share of the library's best product, GB/s."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.compiling import LAUNCHES, compile_all, tasks
from benchmarks.gpu.facts import product_rate
from benchmarks.gpu.layers import SIZES, Size, layer, tiny
from benchmarks.gpu.setting import Case, Found, Setting, records
from benchmarks.gpu.shapes import KERNELS, candidates, forced, text
from benchmarks.gpu.timing import kernel_milliseconds
from hmoe.kernels.layer import Layer, room_bound
from hmoe.kernels.ragged import launch, tune


class Launch(NamedTuple):
    """One launch of a layer: what it calls, what it writes, and its floating-point operations and bytes."""

    run: Callable[[], object]
    out: torch.Tensor
    flops: float
    bytes: float


def cases(setting: Setting) -> Mapping[str, Case]:
    """Compiling, then sizes and loads in the order of their worth, since this stage gives way first."""
    wanted = [task for dim, experts in ((768, 8), (1024, 8), (768, 64)) for task in tasks("bfloat16", dim, experts)]
    found: dict[str, Case] = {"compile": lambda: compile_all(setting, wanted)}
    names = ("0.4B",) if setting.dry else ("0.4B", "3B", "64 experts", "0.4B short")
    for skewed in (False, True):
        for name in names:
            size = tiny(SIZES[name]) if setting.dry else SIZES[name]
            found[f"{name} {'skewed' if skewed else 'uniform'}"] = functools.partial(_case, setting, size, skewed)
    return found


def launches(given: Layer) -> dict[str, Launch]:
    """Those with tile shapes, in the order of a step, each ready to be called again and again."""
    x, width = given.x_TD, given.x_TD.shape[1]
    run = launch.Launcher(given)
    # Random numbers everywhere: products of zeros take less power and run faster.
    pre_gate, pre_up, act, dgate, dup = (torch.randn(room_bound(given), device=x.device).to(x.dtype) for _ in range(5))
    rows, dy = torch.randn(run.num_pairs, width, device=x.device).to(x.dtype), torch.randn_like(x)
    partial = torch.zeros(-(-max(given.widths) // tune.LEAST_BN), run.num_pairs, device=x.device)
    dw = [torch.empty_like(given.w_gate_FD) for _ in range(2)]
    counts = given.num_tokens_E.tolist()
    units = sum(n * h for n, h in zip(counts, given.widths, strict=True))
    product, size = 2 * width * units, x.element_size()
    weights, pairs = sum(given.widths) * width, run.num_pairs * width
    into = (dgate, dup, act, partial, run.num_pairs)
    calls: dict[str, tuple[tuple[Any, ...], torch.Tensor, int, float]] = {  # tensors, output, products, elements moved
        "up": (
            (x, given.token_N, run.plan, given.w_gate_FD, given.w_up_FD, pre_gate, pre_up, act), act, 2, pairs + 2 * weights + 3 * units,
        ),
        "down": ((act, given.w_down_FD, act, given.w_down_FD, run.plan, rows), rows, 1, units + weights + pairs),
        "down_backward": (
            (dy, given.token_N, given.gate_N, run.plan, given.w_down_FD, pre_gate, pre_up, *into), dup, 1, pairs + weights + 5 * units,
        ),
        "dx": ((dgate, given.w_gate_FD, dup, given.w_up_FD, run.plan, rows), rows, 2, 2 * units + 2 * weights + pairs),
        "weights_gate_up": ((dgate, dup, x, given.token_N, run.plan, dw[0], dw[1]), dw[0], 2, 2 * units + pairs + 2 * weights),
        "weights_down": ((act, act, dy, given.token_N, run.plan, dw[0], dw[0]), dw[0], 1, units + pairs + weights),
    }  # fmt: skip
    found = {}
    for name, (tensors, out, products, moved) in calls.items():
        kind, flags = LAUNCHES[name]
        call = functools.partial(run, KERNELS[kind], *tensors, **flags)
        found[name] = Launch(call, out, products * product, size * moved)
    return found


def _case(setting: Setting, size: Size, skewed: bool) -> Found:
    given = layer(size, torch.bfloat16, setting.device, skewed)
    peak, table, parts = product_rate((8192, 8192, 8192), setting), {}, []
    for name, one in launches(given).items():
        kind, flags = LAUNCHES[name]
        rows = [
            _timed(setting, one, kind, shape) for shape in candidates(kind, torch.bfloat16, flags.get("TWO", False))
        ]
        _compare(one, kind, rows)
        table[name] = rows
        timed = [row for row in rows if "ms" in row]
        for row in timed:
            row["tflops"], row["gigabytes_per_second"] = one.flops / row["ms"] / 1e9, one.bytes / row["ms"] / 1e6
        if timed:
            best, first = min(timed, key=lambda row: row["ms"]), rows[0].get("ms", 0)
            share = best["tflops"] / peak
            parts.append(
                f"{name} {best['ms']:.2f} ms {best['tflops']:.0f} TF {share:.0%} {text(best['shape'])} (first {first:.2f})"
            )
        wrong = [f"{text(row['shape'])}: {row['error']}" for row in rows if "error" in row]
        parts += [f"{name} FAILED {wrong[0][:160]} ({len(wrong)})"] if wrong else []
    busiest = float(given.num_tokens_E.max() / given.num_tokens_E.double().mean())
    return " | ".join(parts), {"peak_tflops": peak, "busiest": busiest, "launches": table}


def _timed(setting: Setting, one: Launch, kind: str, shape: tune.Shape) -> dict[str, Any]:
    try:
        with forced({kind: shape}):
            return {"shape": shape, "ms": kernel_milliseconds(one.run, setting.device)}
    except Exception as error:
        if "CUDA error" in str(error):
            raise
        return {"shape": shape, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _compare(one: Launch, kind: str, rows: list[dict[str, Any]]) -> None:
    """Every shape writes what the first does, up to rounding; inputs that a launch overwrites are the same for all after the first."""
    first = None
    for row in rows:
        if "ms" not in row:
            continue
        with forced({kind: row["shape"]}):
            one.run()
        if first is None:
            first = one.out.double()
        elif not float((one.out.double() - first).norm() / first.norm()) < 1e-2:
            row["error"] = f"differs from the first shape; {row.pop('ms'):.3f} ms"


def best_shapes(setting: Setting, case: str) -> dict[str, tune.Shape]:
    """Per kernel the fastest over its launches in a case of this stage, or the package's first where it did not run."""
    chosen = {kind: candidates(kind, torch.bfloat16)[0] for kind in KERNELS}
    for record in records(setting.journal):
        if record["stage"] == 4 and record["case"] == case and record["state"] == "done":
            for kind in KERNELS:
                tables = [rows for name, rows in record["data"]["launches"].items() if LAUNCHES[name][0] == kind]
                sums: dict[tuple[int, ...], list[float]] = {}
                for row in (row for rows in tables for row in rows if "error" not in row):
                    sums.setdefault(tuple(row["shape"]), []).append(row["ms"])
                whole = {shape: sum(ms) for shape, ms in sums.items() if len(ms) == len(tables)}
                if whole:
                    chosen[kind] = min(whole, key=whole.__getitem__)  # type: ignore[assignment]
    return chosen
