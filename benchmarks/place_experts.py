"""How long does it take to place experts on processes, whole ones and cut ones, and how even are they?

    python benchmarks/place_experts.py [--rounds 9] [--out FILE]

Arithmetic widths, loads drawn from a gamma distribution, other ones in each round; medians over rounds, one thread.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median

import hmoe
from hmoe.bench.measure import describe_machine
from hmoe.parallel.placement import place_experts
from hmoe.specs.placement import measure_balance

SIZES = ((16, 4), (64, 8), (128, 16), (256, 64))  # experts, processes


def measure_size(num_experts: int, num_ranks: int, rounds: int) -> dict[str, float]:
    """Return median seconds, and by how much the fullest process exceeds an even part."""
    widths = hmoe.arithmetic(128 * num_experts, num_experts)
    row: dict[str, float] = {"experts": num_experts, "processes": num_ranks}
    for name, cut in (("whole", False), ("cut", True)):
        seconds, worst = [], []
        for seed in range(rounds):
            generator = random.Random(seed)
            frequencies = [generator.gammavariate(3, 1) for _ in widths]
            begin = time.perf_counter()
            placement = place_experts(widths, num_ranks, frequencies, cut=cut)
            seconds.append(time.perf_counter() - begin)
            worst.append(measure_balance(placement, frequencies).worst)
        row |= {f"{name}_seconds": median(seconds), f"{name}_worst": median(worst)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = [measure_size(*size, options.rounds) for size in SIZES]
    for row in rows:
        times = (
            f"{name} {1e3 * row[f'{name}_seconds']:.1f} ms, {row[f'{name}_worst']:.3f}"
            for name in ("whole", "cut")
        )
        print(f"{row['experts']:.0f} experts on {row['processes']:.0f}: {'; '.join(times)} times even")
    if options.out:
        settings = {"machine": describe_machine("cpu"), "rounds": options.rounds}
        options.out.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
