"""What can the ragged Triton kernels reach at best on a GPU? An upper bound, from counting.

Per kernel the FLOPs, the least bytes (each operand once), the larger of the two times, and the share of tile
work that is useful where widths are no multiple of the tile. Uniform routing, bfloat16. The ratio is that of
dense products at the peak to the sum over kernels, if nothing overlaps between kernels: what
`hmoe bench layer --device cuda` prints cannot be above it.

    python benchmarks/roofline.py [--tflops 790] [--terabytes 4.3]

The defaults were measured on an H200; nominal are 989 and 4.8.
"""

import argparse
import json
import math
from pathlib import Path

from hmoe.bench.shapes import SHAPES, LayerShape

SIZE = 2  # bytes of bfloat16


def count_kernels(shape: LayerShape) -> dict[str, tuple[str, float, float]]:
    """Return (pass, FLOPs, bytes) of every kernel."""
    pairs, total = shape.tokens * shape.k, sum(shape.widths)
    units = pairs * total / len(shape.widths)  # activated, over all pairs
    rows, weights, x = pairs * shape.dim, total * shape.dim, shape.tokens * shape.dim
    product = 2 * shape.dim * units
    elements = {  # reads and writes of [rows, D], [rows, h] and [F, D] matrices; gathers read every pair's row
        "up": ("forward", 2 * product, rows + 2 * weights + 3 * units),
        "down": ("forward", product, units + weights + rows),
        "combine": ("forward", 0.0, rows + x),
        "down backward": ("backward", product, rows + weights + 5 * units),
        "d x": ("backward", 2 * product, 2 * units + 2 * weights + rows),
        "combine d x": ("backward", 0.0, rows + x),
        "weights gate, up": ("backward", 2 * product, 2 * units + rows + 2 * weights),
        "weights down": ("backward", product, units + rows + weights),
    }
    return {name: (when, flops, SIZE * count) for name, (when, flops, count) in elements.items()}


def useful_share(shape: LayerShape, tile_rows: int, tile_units: int) -> float:
    """Return the share of the tiles' work on real rows and units."""
    rows = shape.tokens * shape.k / len(shape.widths)
    done = sum(
        math.ceil(rows / tile_rows) * tile_rows * math.ceil(h / tile_units) * tile_units for h in shape.widths
    )
    return rows * sum(shape.widths) / done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tflops", type=float, default=790)
    parser.add_argument("--terabytes", type=float, default=4.3)
    arguments = parser.parse_args()
    rows = []
    print(
        "shape             ms forward  ms forward+backward  ratio forward  forward+backward  "
        "useful 128x128, 128x64, 64x64"
    )
    for name, shape in SHAPES.items():
        table = count_kernels(shape)
        times = {
            k: (when, max(f / arguments.tflops / 1e12, b / arguments.terabytes / 1e12))
            for k, (when, f, b) in table.items()
        }
        peak = {k: (when, f / arguments.tflops / 1e12) for k, (when, f, _) in table.items()}
        bound, ideal = (
            (sum(t for w, t in part.values() if w == "forward"), sum(t for _, t in part.values()))
            for part in (times, peak)
        )
        tiles = [useful_share(shape, *tile) for tile in ((128, 128), (128, 64), (64, 64))]
        print(
            f"{name:17s} {1e3 * bound[0]:10.2f} {1e3 * bound[1]:20.2f} "
            f"{ideal[0] / bound[0]:14.2f} {ideal[1] / bound[1]:17.2f}  "
            + ", ".join(f"{share:.0%}" for share in tiles)
        )
        rows.append({
            "shape": name, "milliseconds": {k: 1e3 * t for k, (_, t) in times.items()},
            "ratio_forward": ideal[0] / bound[0], "ratio_forward_backward": ideal[1] / bound[1],
            "useful_tiles": tiles,
        })  # fmt: skip
    path = Path(__file__).parent / "results" / "roofline-h200.json"
    path.write_text(
        json.dumps(
            {
                "tflops": arguments.tflops,
                "terabytes_per_second": arguments.terabytes,
                "counted": True,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
