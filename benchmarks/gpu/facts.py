"""Stage 0: the machine and its limits: copying, a large product, and products of the layer's own sizes."""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
import triton

from benchmarks.gpu.setting import Case, Outcome, Setting
from hmoe.bench.measure import kernel_milliseconds

ROOT = Path(__file__).parents[2]
PRODUCTS = {  # [a, b] x [b, c] of one 0.4B expert of mean width with 8192 rows: up, down, weight gradient
    "up 8192x768x3072": (8192, 768, 3072),
    "down 8192x1536x768": (8192, 1536, 768),
    "weights 1536x8192x768": (1536, 8192, 768),
}


def hash_sources() -> str:
    """Return the SHA-256 of the kernels' sources, which the figures belong to."""
    total = hashlib.sha256()
    for path in sorted((ROOT / "src/hmoe/kernels/ragged").glob("*.py")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def product_rate(sizes: tuple[int, int, int], setting: Setting) -> float:
    """Measure TFLOP/s of a bfloat16 product of random numbers."""
    rows, depth, columns = (16, 16, 16) if setting.dry else sizes
    a = torch.randn(rows, depth, device=setting.device).bfloat16()
    b = torch.randn(depth, columns, device=setting.device).bfloat16()
    return 2 * rows * depth * columns / kernel_milliseconds(lambda: a @ b, setting.device) / 1e9


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases: the machine, a copy, the products."""

    def machine() -> Outcome:
        versions = {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        }
        if not setting.dry:
            properties = torch.cuda.get_device_properties(0)
            versions |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count,
                      "l2_megabytes": properties.L2_cache_size / 1e6, "gigabytes": properties.total_memory / 1e9,
                      "cuda": torch.version.cuda}  # fmt: skip
        return " ".join(f"{key}={value}" for key, value in versions.items()), {
            **versions,
            "kernel_sources": hash_sources(),
        }

    def copy() -> Outcome:
        numbers = torch.randn(1 << (10 if setting.dry else 30), device=setting.device)
        into = torch.empty_like(numbers)
        rate = 8 * len(numbers) / kernel_milliseconds(lambda: into.copy_(numbers), setting.device) / 1e9
        return f"{rate:.2f} TB/s read and written", {"terabytes_per_second": rate}

    def product(sizes: tuple[int, int, int]) -> Outcome:
        rate = product_rate(sizes, setting)
        return f"{rate:.0f} TFLOP/s", {"tflops": rate}

    products = {"8192 cubed": (8192, 8192, 8192), **PRODUCTS}
    return {
        "machine": machine, "copy": copy,
        **{f"bfloat16 {name}": lambda sizes=sizes: product(sizes) for name, sizes in products.items()},
    }  # fmt: skip
