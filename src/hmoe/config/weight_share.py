"""Weights and gradients of a process in a training step, by how they are shared. No torch."""

from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import RunConfig
from hmoe.config.step_work import count_number_bytes

# Measured by two and four processes, not counted, as they depend on who waits for whom: of a block's gradients in exact
# mode, where each process's are received by themselves and added up, and of weights that have just come (zero3).
_EXACT_BLOCKS, _EXACT_ROWS, _COMING_BLOCKS = 1.6, 5.0, 0.5


def count_exact_sums(num_parts: int, num_processes: int) -> int:
    """Return the most sums of gradients that exact mode keeps beside those of the micro-batch that is computed.

    They are over 1, 2, 4, ... micro-batches, as the binary digits of those that are done.
    """
    return max(done.bit_count() for done in range(0, num_parts, num_processes))


class WeightShare:
    """Weights that are shared in one way: what a process keeps, gathers, and has of their gradients; in bytes.

    Attributes:
        own: weights between steps.
        block: weights of a block.
        before: gradients before a step's last backward pass.
        is_whole: whether those are whole.
        group: processes that hold the weights between them.
    """

    def __init__(
        self,
        config: RunConfig,
        num_processes: int,
        sharding: str,
        outside: float,
        block: float,
        group: int | None = None,
    ) -> None:
        """Count what a process has.

        Args:
            config: of the run.
            num_processes: that compute a step.
            sharding: how they share the weights.
            outside: bytes of weights outside of blocks.
            block: of those in each block.
            group: processes that hold the weights between them; None: all, or those of a replica.
        """
        self._outside, self.block, self._layers = outside, block, config.model.layers
        self._gathers_each_time, self._is_shared = sharding == "zero3", num_processes > 1 and group != 1
        parts, is_exact = config.data.num_micro_batches, config.parallel.exact
        self._is_exact = is_exact
        # One process shares nothing, whatever the recipe says.
        keeps_all = sharding == "ddp" or not self._is_shared
        group = group or num_processes // config.parallel.replicas
        self.group = 1 if keeps_all else group
        total = outside + self._layers * block
        self.own = total / self.group
        adds_up = parts > num_processes
        # Added up once in a step: until the last micro-batch each process keeps whole ones.
        is_alone = num_processes == 1
        self.is_whole = is_alone or (adds_up and not self._gathers_each_time and not is_exact)
        self.before = (total if self.is_whole else self.own) * adds_up
        if is_exact:  # sums over 1, 2, 4, ... micro-batches
            self.before = self.own * count_exact_sums(parts, num_processes)

    def send(self) -> float:
        """Return a block's gradients on their way to the processes that keep their rows, and those rows."""
        rows = self.block / self.group
        if self._is_exact:
            return (_EXACT_BLOCKS * self.block + _EXACT_ROWS * rows) * self._is_shared
        return (self.block + rows) * self._is_shared

    def gather(self, num_done: int) -> float:
        """Return the weights that are gathered besides, when the backward pass has left so many blocks behind."""
        blocks: float = self._layers - num_done
        if self._gathers_each_time and blocks:
            blocks = min(blocks, 2) + _COMING_BLOCKS * (self.group > 1)  # this one, the next one
        gathered = self._outside + self.block * blocks
        return gathered * self._is_shared

    def arrive(self, num_blocks: int) -> float:
        """Return blocks as they have come, before their weights are copied into place or just after."""
        if self.group == 1:  # there is nobody to get them from
            return 0.0
        return self.block * (1 if self._gathers_each_time else num_blocks)


def list_weight_shares(
    config: RunConfig,
    num_processes: int,
    sizes: tuple[float, float, float],
    placed: PlacementCosts | None,
) -> tuple[list[WeightShare], float]:
    """Return the ways in which a run's weights are shared, and the bytes of a block that a process computes with.

    Args:
        config: of the run.
        num_processes: that compute a step.
        sizes: bytes outside of blocks, of a block, and of a block's layer with experts.
        placed: where experts are placed.
    """
    (outside, block, layer), layers = sizes, config.model.layers
    shard, experts = config.parallel.sharding, config.parallel.experts
    if placed is None:
        apart = layer if experts not in (None, shard) else 0.0
        shares = [WeightShare(config, num_processes, shard, outside, block - apart)]
        if apart and experts is not None:
            shares.append(WeightShare(config, num_processes, experts, 0.0, apart))
        return shares, block
    size = count_number_bytes(config)
    rest, local = block - placed.placed * size / layers, placed.local * size / layers
    if config.parallel.offload != "none":  # counted apart, as experts at hand
        local = 0.0
    return [
        WeightShare(config, num_processes, shard, outside, rest),
        WeightShare(config, num_processes, shard, 0.0, local, placed.data_parallel),
    ], rest + local
