"""What sharing weights costs on this machine's CPU: steps of a few tokens with FSDP2, less the same without.

Besides the bytes it is copies into place and out of it, hooks, and an optimiser on shared weights, none of which a bare
collective operation has. On a GPU computing hides most of it; there `hmoe.parallel.collectives` measures.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from hmoe.bench.measure import BenchOptions, time_interleaved
from hmoe.bench.training import Training, make_own_part
from hmoe.config.counts import count_parameters
from hmoe.config.run import RunConfig
from hmoe.config.step_work import FLOAT_BYTES, OPTIMIZER_BYTES, count_block_work

Recipe = Callable[[int, int], RunConfig]  # of a width and a number of layers
_FEW, _MANY = 2, 8  # blocks


class Extra(NamedTuple):
    """What sharing adds to a step of a model.

    Attributes:
        seconds: by zero2, without what the update spares.
        again: further seconds by zero3, which gathers the weights of blocks once more.
        num_bytes: that a process sends of all weights, in one direction.
        block_bytes: of one block's weights, whole.
    """

    seconds: float
    again: float
    num_bytes: float
    block_bytes: float


def measure_shared_link(
    make_recipe: Recipe, widths: Sequence[int], optimizer_rate: float, options: BenchOptions
) -> dict[str, Any]:
    """Return what gathering weights and reducing gradients takes: latency, bytes per second, and what a step adds.

    Args:
        make_recipe: of a training of a few tokens of each process.
        widths: of a narrow model, whose bytes are few, and of others that tell the rates.
        optimizer_rate: bytes per second of the update, of which each process does its part only.
        options: rounds, and the processes, at least two.
    """
    narrow, *others = widths
    shapes = [(narrow, _FEW), (narrow, _MANY), *((width, _FEW) for width in others)]
    few, many, *wide = (_measure_extra(make_recipe(*shape), optimizer_rate, options) for shape in shapes)
    return solve_link(few, many, wide, options.workers.size)


def _measure_extra(config: RunConfig, optimizer_rate: float, options: BenchOptions) -> Extra:
    workers, device = options.workers, options.device
    runs = {shard: Training(_share(config, shard), device, workers) for shard in ("zero2", "zero3")}
    alone = make_own_part(runs["zero2"], workers)
    workers.gather_values(None)  # all begin together
    timings = time_interleaved({**runs, "alone": alone}, options.rounds, warm=2, device=device)
    rounds = zip(*(timings[name] for name in ("alone", "zero2", "zero3")), strict=True)
    seconds = [[timing.seconds for timing in each] for each in rounds]
    sent = FLOAT_BYTES * sum(count_parameters(config.model).values()) * (workers.size - 1) / workers.size
    return Extra(
        # Of the whole update that a process does alone it does its own rows here.
        median(zero2 - own for own, zero2, _ in seconds)
        + OPTIMIZER_BYTES / FLOAT_BYTES * sent / optimizer_rate,
        median(zero3 - zero2 for _, zero2, zero3 in seconds),
        sent,
        FLOAT_BYTES * count_block_work(config.model, 1)[0].parameters,
    )


def _share(config: RunConfig, shard: str) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"shard": shard})})


def solve_link(few: Extra, many: Extra, wide: Sequence[Extra], size: int) -> dict[str, Any]:
    """Return latency, rates by bytes of a block, and seconds of a step from what sharing adds to some.

    zero2 gathers and reduces once for each block and once for the rest, and measures a norm together: latencies, all
    bytes in both directions, and what a step adds. What noise makes negative becomes next to nothing.

    Args:
        few, many: narrow models of _FEW and _MANY blocks.
        wide: models of _FEW blocks, the first of which tells the rates of the narrow ones, too.
        size: number of processes.
    """
    first = wide[0]
    both = max((first.seconds - few.seconds) / (first.num_bytes - few.num_bytes), 1e-12)
    blocks = many.seconds - few.seconds - both * (many.num_bytes - few.num_bytes)
    latency = max(blocks / (2 * (_MANY - _FEW)), 0.0)
    fixed = max(few.seconds - both * few.num_bytes, 0.0)
    gather: dict[int, float] = {}
    reduce: dict[int, float] = {}
    for extra in wide:
        both = max((extra.seconds - fixed) / extra.num_bytes, 1e-12)
        again = (extra.again - _FEW * latency) / (_FEW * extra.block_bytes * (size - 1) / size)
        one_way = min(max(again, 0.1 * both), 0.9 * both)
        gather[round(extra.block_bytes)], reduce[round(extra.block_bytes)] = 1 / one_way, 1 / (both - one_way)
    return {
        "gather_bytes_per_second": gather,
        "reduce_bytes_per_second": reduce,
        "latency_seconds": latency,
        "sharing_seconds": max(fixed - (2 * (_FEW + 1) + 1) * latency, 0.0),
    }
