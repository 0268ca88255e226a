"""How near is a layer that serves one token to the time of reading its activated weights from memory?

Twelve layers in turn, so that their weights come from memory and not from a cache. On a GPU the times are
those of CUDA events with the launches queued ahead; "wall us" is by the clock, from an idle GPU, and shows
what Python costs.

    hmoe bench decode, or where only PyTorch is installed: python -m hmoe.bench.decode
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import hmoe
from hmoe.bench.measure import (
    RESULTS,
    BenchOptions,
    choose_default_dtype,
    describe_machine,
    describe_timing,
    measure_read_bandwidth,
    median_seconds,
    median_wall,
    place_name,
    save_result,
    time_interleaved,
)
from hmoe.bench.shapes import LayerShape, check_dtypes, get_shape
from hmoe.errors import HMoEError
from hmoe.kernels import expert_ffn
from hmoe.model.routing import Routing

LAYERS = 12


def measure_decode(
    name: str, shape: LayerShape, dtype: torch.dtype, device: str, rounds: int, tokens: int
) -> dict[str, Any]:
    """Measure microseconds per layer: to read the activated bytes, of the experts, of the whole layer."""
    torch.manual_seed(0)
    layers = [hmoe.MoE(shape.dim, shape.widths, hmoe.TopK(shape.k)).to(device, dtype) for _ in range(LAYERS)]
    for layer in layers:
        layer.check_finite = False
        torch.nn.init.normal_(layer.router.weight, std=1.0)
    x = torch.randn(tokens, shape.dim, device=device).to(dtype)
    with torch.inference_mode():
        routings = [layer(x)[1] for layer in layers]
        runs = {
            "experts": lambda: [
                _experts(layer, x, r, None) for layer, r in zip(layers, routings, strict=True)
            ],
            "experts, loop": lambda: [
                _experts(layer, x, r, "loop") for layer, r in zip(layers, routings, strict=True)
            ],
            "layer": lambda: [layer(x) for layer in layers],
        }
        times = time_interleaved(runs, rounds, warm=3, device=device, queued=True)
    # Only experts that some token chose are read: three matrices of their hidden units.
    used = sum(h for r in routings for h, n in zip(shape.widths, r.num_tokens_E.tolist(), strict=True) if n)
    read = 3 * used * shape.dim * dtype.itemsize / measure_read_bandwidth(device)
    us = {run: 1e6 * median_seconds(timings) / LAYERS for run, timings in times.items()}
    wall = {run: 1e6 * median_wall(timings) / LAYERS for run, timings in times.items() if device == "cuda"}
    return {
        "shape": name, **vars(shape), "tokens": tokens, "dtype": str(dtype)[6:], "memory_read_us": 1e6 * read / LAYERS,
        **{f"{run} us": time for run, time in us.items()}, **{f"{run} wall us": time for run, time in wall.items()},
        "share_of_memory_read_limit": 1e6 * read / LAYERS / us["experts"],
        "ratio_to_loop": us["experts, loop"] / us["experts"],
    }  # fmt: skip


def _experts(layer: hmoe.MoE, x_TD: torch.Tensor, routing: Routing, backend: str | None) -> torch.Tensor:
    pairs = (routing.token_N, routing.gate_N, routing.num_tokens_E)
    return expert_ffn(x_TD, *pairs, layer.w_gate, layer.w_up, layer.w_down, layer.widths, backend)


def bench_decode(
    shapes: Sequence[str] | None, dtypes: Sequence[str], tokens: int, options: BenchOptions
) -> Path:
    """Measure one-token layers, print and write the figures, and return the file's path."""
    device = options.device
    options.prepare()
    check_dtypes(dtypes)
    rows = []
    wall = f" {'wall us':>9s}" if device == "cuda" else ""
    options.say(
        f"{'shape':12s} {'dtype':9s} {'read us':>8s} {'experts us':>10s} {'of limit':>8s} {'loop us':>9s} "
        f"{'whole layer us':>14s}{wall}"
    )
    for name in shapes or ("0.4B", "64-experts"):
        for dtype in dtypes:
            row = measure_decode(name, get_shape(name), getattr(torch, dtype), device, options.rounds, tokens)
            rows.append(row)
            wall = f" {row['layer wall us']:9.0f}" if "layer wall us" in row else ""
            options.say(
                f"{name:12s} {dtype:9s} {row['memory_read_us']:8.0f} {row['experts us']:10.0f} "
                f"{row['share_of_memory_read_limit']:8.2f} {row['experts, loop us']:9.0f} {row['layer us']:14.0f}{wall}"
            )
    content = {
        "machine": describe_machine(device), "timing": describe_timing(device, queued=True), "layers": LAYERS,
        "rows": rows,
    }  # fmt: skip
    return save_result(options.out, f"decode-{place_name(device)}-{tokens}tokens", content)


def run_decode_module() -> int:
    """Run the benchmark of decoding from a command line that needs PyTorch only; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    options = BenchOptions(arguments.device, arguments.rounds, out=arguments.out)
    try:
        path = bench_decode(None, [choose_default_dtype(arguments.device)], 1, options)
    except HMoEError as error:
        print(f"hmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_decode_module())
