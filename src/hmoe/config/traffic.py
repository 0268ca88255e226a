"""What each process of a training step sends to others, in bytes, from the recipe alone. No torch."""

from dataclasses import dataclass

from hmoe.config.counts import count_parameters
from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import RunConfig
from hmoe.config.step_work import count_block_work, count_number_bytes, describe_shares
from hmoe.specs.placement import ExpertLoad


@dataclass(frozen=True)
class Traffic:
    """What a process sends in a step, in bytes, by kind of operation.

    Attributes:
        gathered: weights, so that other processes can compute with them.
        reduced: gradients, to the processes that keep their rows.
        repeated: gradients, to the groups that hold the same rows (`parallel.replicas`).
        travelling: tokens to experts and back, and their gradients (`parallel.experts`), by the busiest process.
    """

    gathered: float = 0.0
    reduced: float = 0.0
    repeated: float = 0.0
    travelling: float = 0.0


def count_traffic(config: RunConfig, num_processes: int, load: ExpertLoad | None = None) -> Traffic:
    """Return what each process sends in a step; `load` is where experts are, if they are placed."""
    shares = describe_shares(config, num_processes)
    total: float = sum(count_parameters(config.model).values())
    outside = total - sum(block.parameters for block in count_block_work(config.model, 1))
    size = count_number_bytes(config)
    travelling = placed = 0.0
    if load is not None:
        placed = (1 - load.replicas) * count_parameters(config.model)["experts"]
        total -= placed  # none of theirs is sent, unless several processes share the same ones
        tokens = config.data.batch_tokens / num_processes
        travelling = len(config.model.moe_layers) * tokens * load.rows * count_row_bytes(config)
    kept = (shares.group - 1) / shares.group * size
    # For a forward and a backward pass, between which what lies outside of blocks stays.
    parts = shares.num_parts if shares.gathers_each_time else 1
    times = 2 * parts if shares.gathers_each_time else 1
    gathered = kept * ((total - outside) * times + outside * parts)
    reduced = kept * total * (shares.num_parts if shares.reduces_each_part else 1)
    repeated = 2 * (shares.replicas - 1) / shares.replicas * size * total / shares.group
    if load is not None:
        experts = PlacementCosts(config, num_processes, load)
        own = experts.local * (1 - 1 / experts.data_parallel) * size
        gathered += own * times
        reduced += own * (shares.num_parts if shares.reduces_each_part else 1)
    return Traffic(gathered, reduced, repeated, travelling)


def count_row_bytes(config: RunConfig) -> float:
    """Return the bytes that travel for a row of a layer's tokens: there and back, and so do their gradients.

    Blocks that are computed again send their rows again.
    """
    element_bytes = 2 if config.train.precision == "bfloat16" else count_number_bytes(config)
    return (6 if config.train.recomputes_blocks else 4) * config.model.dim * element_bytes
