"""What sharing weights costs on this machine's CPU: steps of a few tokens with FSDP2, less the same without.

Besides the bytes it is copies into place and out of it, hooks, and an optimiser on shared weights, none of which a bare
collective operation has. On a GPU computing hides most of it; there `hmoe.parallel.collectives` measures.
"""

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from hmoe.bench.measure import BenchOptions, time_interleaved
from hmoe.bench.training import Training, make_own_part
from hmoe.config.counts import count_parameters
from hmoe.config.run import RunConfig
from hmoe.config.step_work import FLOAT_BYTES, OPTIMIZER_BYTES, count_block_work

Recipe = Callable[[int, int], RunConfig]  # of a width and a number of layers
_FEW, _MANY = 2, 8  # blocks


class Extras(NamedTuple):
    """Seconds that sharing adds to a step, and bytes that a process sends of its weights.

    Attributes:
        few, many, wide: seconds by zero2, without what the update spares, of narrow models of few and of many
            blocks, and of a wide one of few.
        again: further seconds of the wide one by zero3, which gathers the weights of blocks once more.
        few_bytes, many_bytes, wide_bytes: of all weights.
        again_bytes: of the wide one's blocks.
    """

    few: float
    many: float
    wide: float
    again: float
    few_bytes: float
    many_bytes: float
    wide_bytes: float
    again_bytes: float


def measure_shared_link(
    make_recipe: Recipe, widths: tuple[int, int], optimizer_rate: float, options: BenchOptions
) -> dict[str, float]:
    """Return what gathering weights and reducing gradients takes: latency, bytes per second, and what a step adds.

    Args:
        make_recipe: of a training of a few tokens of each process.
        widths: of the narrow and the wide model.
        optimizer_rate: bytes per second of the update, of which each process does its part only.
        options: rounds, and the processes, at least two.
    """
    size = options.workers.size
    recipes = {
        "few": make_recipe(widths[0], _FEW),
        "many": make_recipe(widths[0], _MANY),
        "wide": make_recipe(widths[1], _FEW),
    }
    runs: dict[str, Training] = {}
    for name, config in recipes.items():
        runs[name] = Training(_share(config, "zero2"), options.device, options.workers)
        runs[f"{name} alone"] = make_own_part(runs[name], options.workers)
    runs["again"] = Training(_share(recipes["wide"], "zero3"), options.device, options.workers)
    options.workers.gather_values(None)  # all begin together
    timings = time_interleaved(dict(runs), options.rounds, warm=2, device=options.device)
    seconds = {name: [timing.seconds for timing in times] for name, times in timings.items()}

    def subtract(first: str, second: str) -> float:
        return median(a - b for a, b in zip(seconds[first], seconds[second], strict=True))

    sent = {
        name: FLOAT_BYTES * sum(count_parameters(config.model).values()) * (size - 1) / size
        for name, config in recipes.items()
    }
    inside = sum(block.parameters for block in count_block_work(recipes["wide"].model, 1))
    # Of the whole update that a process does alone, those with others spare it all but its own rows.
    few, many, wide = (
        subtract(name, f"{name} alone") + OPTIMIZER_BYTES / FLOAT_BYTES * sent[name] / optimizer_rate
        for name in recipes
    )
    again_bytes = FLOAT_BYTES * inside * (size - 1) / size
    return solve_link(
        Extras(
            few, many, wide, subtract("again", "wide"), sent["few"], sent["many"], sent["wide"], again_bytes
        )
    )


def _share(config: RunConfig, shard: str) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"shard": shard})})


def solve_link(extras: Extras) -> dict[str, float]:
    """Return latency, rates, and seconds of a step from what sharing adds to four of them.

    zero2 gathers and reduces once for each block and once for the rest, and measures a norm together: latencies, all
    bytes in both directions, and what a step adds. What noise makes negative becomes next to nothing.
    """
    both = max((extras.wide - extras.few) / (extras.wide_bytes - extras.few_bytes), 1e-12)
    blocks = extras.many - extras.few - both * (extras.many_bytes - extras.few_bytes)
    latency = max(blocks / (2 * (_MANY - _FEW)), 0.0)
    gather = min(max((extras.again - _FEW * latency) / extras.again_bytes, 0.1 * both), 0.9 * both)
    step = extras.few - (2 * (_FEW + 1) + 1) * latency - both * extras.few_bytes
    return {
        "gather_bytes_per_second": 1 / gather,
        "reduce_bytes_per_second": 1 / (both - gather),
        "latency_seconds": latency,
        "sharing_seconds": max(step, 0.0),
    }
