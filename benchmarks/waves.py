"""How evenly do persistent programs share the tiles of a layer? The longest program's work against the mean's.

    python benchmarks/waves.py

A tile costs the depth of its product, and 250 more for what it loads and stores once. Three ways to hand
tiles out, the longest first: in turn; in turn and back; to whoever is free. What the kernels use is `tile_of_turn`
(there and back) and a counter (whoever is free) in src/hmoe/kernels/ragged/tiles.py and backward.py.
"""

import heapq
from collections.abc import Iterator

import hmoe
from hmoe.kernels.ragged.shapes import HOPPER, NARROW_WIDTH, TileShape

MULTIPROCESSORS = 132  # of an H100 or H200
TILE_COST = 250  # of a tile, whatever its depth
LAYERS = {
    "0.4B, 32,768 tokens": (768, hmoe.arithmetic(12288, 8), 65536),
    "3B, 32,768 tokens": (1024, hmoe.arithmetic(32768, 8), 65536),
    "64 experts, 32,768 tokens": (768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 262144),
    "0.4B, 4,096 tokens": (768, hmoe.arithmetic(12288, 8), 8192),
}


def find_shape(launch: str, widths: tuple[int, ...]) -> TileShape:
    """Return the tile shape of a launch in the table."""
    return HOPPER[launch]["wide" if sum(widths) // len(widths) >= NARROW_WIDTH else "narrow"]


def list_costs(launch: str, dim: int, experts: list[tuple[int, int]]) -> Iterator[int]:
    """Yield the cost of every tile; experts are (width, pairs)."""
    shape = find_shape(launch, tuple(width for width, _ in experts))
    by_pairs = launch.startswith("weights")
    for width, pairs in sorted(experts, key=lambda expert: expert[1 if by_pairs else 0], reverse=True):
        rows, columns, depth = (width, dim, pairs) if by_pairs else (pairs, dim, width)
        if launch == "up":
            columns, depth = width, dim
        depth *= 2 if launch == "dx" else 1
        yield from [depth + TILE_COST] * (-(-rows // shape.rows) * -(-columns // shape.columns))


def busiest_work(costs: list[int], programs: int) -> tuple[int, int, int]:
    """Return the work of the busiest program: in turn, there and back, to whoever is free."""
    back, free = [0] * programs, [0] * programs
    for index, cost in enumerate(costs):
        turn, place = divmod(index, programs)
        back[place if turn % 2 == 0 else programs - 1 - place] += cost
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(sum(costs[place::programs]) for place in range(programs)), max(back), max(free)


def main() -> None:
    print(
        f"{'layer':26s} {'busiest':>7s} {'launch':16s} {'tiles':>6s} {'in turn':>8s} {'and back':>8s} {'free':>6s}"
    )
    for name, (dim, widths, pairs) in LAYERS.items():
        for busiest in (1, 3):  # times the mean
            rest = (len(widths) - busiest) / (len(widths) - 1)
            share = [busiest if i == 2 else rest for i in range(len(widths))]
            experts = [
                (width, round(pairs * part / len(widths))) for width, part in zip(widths, share, strict=True)
            ]
            for launch in ("up", "down", "dx", "weights_gate_up", "weights_down"):
                costs = list(list_costs(launch, dim, experts))
                programs = MULTIPROCESSORS * find_shape(launch, widths).programs
                ratios = [work / (sum(costs) / programs) for work in busiest_work(costs, programs)]
                print(
                    f"{name:26s} {busiest:7d} {launch:16s} {len(costs):6d} "
                    + " ".join(f"{ratio:8.2f}" for ratio in ratios)
                )


if __name__ == "__main__":
    main()
