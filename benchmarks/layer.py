"""How fast is hmoe.MoE against a dense SwiGLU of the same activated FLOPs?

Forward and backward (or forward alone), side by side in one process, interleaved, medians, fresh routing at every
step: a routing that repeats hides what training pays. Writes benchmarks/results/layer-<device>-<date>.json.

    python benchmarks/layer.py [--threads 1] [--rounds 15] [--device cpu]
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import hmoe
from hmoe.model.layers import SwiGLU

SHAPES = {  # name: dim, widths, k, tokens
    "0.4B": (768, hmoe.arithmetic(12288, 8), 2, 4096),
    "small": (256, hmoe.arithmetic(2048, 8, multiple=16), 2, 4096),
    "64 experts": (768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 8, 4096),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    print("shape        dtype     pass              dense ms  MoE ms   ratio  MoE GFLOP/s")
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            for backward in (True, False):
                row = measure(shape, getattr(torch, dtype), backward, arguments.rounds, arguments.device)
                rows.append(row)
                print(
                    f"{shape:12s} {dtype:9s} {row['pass']:16s} {row['dense_ms']:9.1f} {row['moe_ms']:7.1f} {row['ratio']:7.2f} "
                    f"{row['moe_gflops_per_second']:9.0f}",
                    flush=True,
                )
    machine = {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hmoe": hmoe.__version__,
        "date": datetime.date.today().isoformat(),
    }
    name = f"layer-{arguments.device}-{arguments.threads}threads-{machine['date']}.json"
    path = Path(__file__).parent / "results" / name
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"written to {path}")


def measure(shape: str, dtype: torch.dtype, backward: bool, rounds: int, device: str) -> dict[str, object]:
    """Median milliseconds of both layers, and the median of the ratios of neighbouring runs."""
    dim, widths, k, tokens = SHAPES[shape]
    torch.manual_seed(0)
    moe = hmoe.MoE(dim, widths, hmoe.TopK(k)).to(device, dtype)
    moe.check_finite = False
    dense = SwiGLU(dim, k * sum(widths) // len(widths)).to(device, dtype)
    dense.reset_parameters()
    grad = torch.randn(tokens, dim, device=device, dtype=dtype)
    pairs, units = [], []
    for number in range(rounds + 3):
        x = torch.randn(tokens, dim, device=device, dtype=dtype, requires_grad=backward)
        torch.nn.init.normal_(moe.router.weight, std=dim**-0.5)  # fresh routing
        count = torch.zeros(len(widths))

        def run_moe(x: torch.Tensor = x, count: torch.Tensor = count) -> torch.Tensor:
            y, routing = moe(x)
            count += routing.num_tokens_E.cpu()
            return y

        times = (timed(lambda x=x: dense(x), grad, backward, device), timed(run_moe, grad, backward, device))
        if number >= 3:
            pairs.append(times)
            # Routing moves the activated width a little: the dense layer's FLOPs are scaled to it.
            units.append(float((count * torch.tensor(widths)).sum()) / tokens / dense.w_gate.shape[0])
    ratios = [d / m * u for (d, m), u in zip(pairs, units, strict=True)]
    moe_ms = statistics.median(m for _, m in pairs)
    flops = (3 if backward else 1) * 6 * dim * statistics.median(units) * dense.w_gate.shape[0] * tokens
    return {
        "shape": shape, "dim": dim, "widths": list(widths), "k": k, "tokens": tokens, "dtype": str(dtype)[6:],
        "pass": "forward+backward" if backward else "forward", "rounds": rounds,
        "dense_ms": statistics.median(d for d, _ in pairs), "moe_ms": moe_ms, "ratio": statistics.median(ratios),
        "moe_gflops_per_second": flops / moe_ms / 1e6,
    }  # fmt: skip


def timed(forward: Callable[[], torch.Tensor], grad: torch.Tensor, backward: bool, device: str) -> float:
    """Milliseconds of one pass."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    if backward:
        forward().backward(grad)
    else:
        with torch.no_grad():
            forward()
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
