"""How near is a layer that serves one token to the time of reading its activated weights from memory?

Twelve layers in turn, so that their weights come from memory and not from a cache.

    hmoe bench decode, or where only PyTorch is installed: python -m hmoe.bench.decode
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import hmoe
from hmoe.bench.layer import Shape, check_dtypes, known_shape
from hmoe.bench.measure import check_device, interleaved, machine, median, read_bandwidth, save
from hmoe.errors import HMoEError
from hmoe.kernels import expert_ffn
from hmoe.model.routing import Routing

LAYERS = 12


def measure(name: str, shape: Shape, dtype: torch.dtype, device: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Microseconds per layer: reading the activated bytes, the experts alone, the whole layer, the loop backend."""
    torch.manual_seed(0)
    layers = [hmoe.MoE(shape.dim, shape.widths, hmoe.TopK(shape.k)).to(device, dtype) for _ in range(LAYERS)]
    for layer in layers:
        layer.check_finite = False
        torch.nn.init.normal_(layer.router.weight, std=1.0)
    x = torch.randn(tokens, shape.dim, device=device).to(dtype)
    with torch.inference_mode():
        routings = [layer(x)[1] for layer in layers]
        runs = {
            "experts": lambda: [_experts(layer, x, r, None) for layer, r in zip(layers, routings, strict=True)],
            "experts, loop": lambda: [_experts(layer, x, r, "loop") for layer, r in zip(layers, routings, strict=True)],
            "layer": lambda: [layer(x) for layer in layers],
        }
        times = interleaved(runs, rounds, warm=3, device=device)
    used = sum(h for r in routings for h, n in zip(shape.widths, r.num_tokens_E.tolist(), strict=True) if n)
    read = 3 * used * shape.dim * dtype.itemsize / read_bandwidth(device)
    share, loop = read / median(times["experts"]), median(times["experts, loop"]) / median(times["experts"])
    return {
        "shape": name, **vars(shape), "tokens": tokens, "dtype": str(dtype)[6:], "memory_read_us": 1e6 * read / LAYERS,
        **{f"{run} us": 1e6 * median(t) / LAYERS for run, t in times.items()},
        "share_of_memory_read_limit": share, "ratio_to_loop": loop,
    }  # fmt: skip


def _experts(layer: hmoe.MoE, x_TD: torch.Tensor, routing: Routing, backend: str | None) -> torch.Tensor:
    pairs = (routing.token_N, routing.gate_N, routing.num_tokens_E)
    return expert_ffn(x_TD, *pairs, layer.w_gate, layer.w_up, layer.w_down, layer.widths, backend)


def bench(
    shapes: Sequence[str] | None, dtypes: Sequence[str], device: str, rounds: int, tokens: int, threads: int | None, out: Path,
    say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Measure, print and write; the result's path."""
    check_device(device)
    check_dtypes(dtypes)
    if threads:
        torch.set_num_threads(threads)
    rows = []
    say(
        f"{'shape':12s} {'dtype':9s} {'read us':>8s} {'experts us':>10s} {'of limit':>8s} {'loop us':>9s} {'whole layer us':>14s}"
    )
    for name in shapes or ("0.4B", "64-experts"):
        for dtype in dtypes:
            row = measure(name, known_shape(name), getattr(torch, dtype), device, rounds, tokens)
            rows.append(row)
            say(
                f"{name:12s} {dtype:9s} {row['memory_read_us']:8.0f} {row['experts us']:10.0f} {row['share_of_memory_read_limit']:8.2f} "
                f"{row['experts, loop us']:9.0f} {row['layer us']:14.0f}"
            )
    place = "cuda" if device == "cuda" else f"cpu-{torch.get_num_threads()}threads"
    return save(out, f"decode-{place}-{tokens}tokens", {"machine": machine(device), "layers": LAYERS, "rows": rows})


def main() -> int:
    """The same without the command line's libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    a = parser.parse_args()
    try:
        path = bench(None, ["bfloat16"], a.device, a.rounds, 1, None, a.out)
    except HMoEError as error:
        print(f"hmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
