"""How long a training step would take on machines that are not here: a walk through its passes. No torch.

Each process has three clocks: one computes, one sends, one moves experts that lie elsewhere. Weights of the next block
are asked for when a block begins, gradients are sent when its backward pass has ended; who needs what has not arrived
waits for it.

    computing  | block 1 | block 2 | ... | head | ... | block 2 | block 1 | optimizer
    sending    | w 2 | w 3 | ...                    | g 3     | g 2     | g 1 |
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hmoe.config.counts import count_parameters, estimate_flops_per_token
from hmoe.config.hardware import Hardware, Link, get_rate
from hmoe.config.offload import find_expert_share, time_offload
from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import RunConfig
from hmoe.config.step_work import (
    ADDING_BYTES,
    FLOAT_BYTES,
    OPTIMIZER_BYTES,
    BlockWork,
    Shares,
    count_block_work,
    describe_shares,
)
from hmoe.specs.placement import ExpertLoad

_MOVING = "waiting for experts elsewhere"
_BACKWARD = 2.0  # times the forward pass: gradients of inputs and of weights
LEFT_OUT = (
    "reading data, evaluation and checkpoints",
    "processes that have more to do than others, and waiting for the slowest one; where experts are placed only that "
    "memory, work and rows may be the most of different processes, groups that lie on several machines, and the travel "
    "that a shared expert hides",
    "experts that are shared otherwise than the rest (parallel.experts), unless they are placed: they are taken as the "
    "rest",
    "HyperExperts, routing that grows with the number of experts, what a large vocabulary's gradients take besides",
    "a precision other than the one that the machine's rates are of",
    "memory that is fragmented, clocks that change, and networks that others use, too",
)


@dataclass
class StepTime:
    """What a step takes, in seconds of a process.

    Attributes:
        seconds: in all.
        by_part: of computing, by part; `waiting` is for others' weights and gradients.
        communication_seconds: of all transfers between processes, hidden or not.
        moving_seconds: of experts that lie elsewhere, hidden or not.
        tokens_per_second: of all processes.
        mfu: training FLOPs per second of what the data sheets of all processes promise; causal, nothing counted twice.
    """

    seconds: float = 0.0
    by_part: dict[str, float] = field(default_factory=dict)
    communication_seconds: float = 0.0
    moving_seconds: float = 0.0
    tokens_per_second: float = 0.0
    mfu: float = 0.0


class _Clocks:
    """The clocks of a process: one computes, one sends, one moves experts that lie elsewhere."""

    def __init__(self, overlap: float) -> None:
        self._overlap, self.now, self._free, self._moved_until = overlap, 0.0, 0.0, 0.0
        self.parts: dict[str, float] = {}
        self.sent = self.moved = 0.0

    def compute(self, part: str, seconds: float) -> None:
        """Let the first clock go on."""
        self.now += seconds
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    def send(self, seconds: float) -> float:
        """Begin a transfer as soon as the second clock is free; return when it will have ended."""
        self.sent += seconds
        # What computing does not hide, as it needs the same cores: both clocks go on.
        self.compute("waiting", (1 - self._overlap) * seconds)
        self._free = max(self._free, self.now) + self._overlap * seconds
        return self._free

    def move(self, seconds: float) -> float:
        """Begin to move experts as soon as those before have moved, by a third clock; return when it ends."""
        self.moved += seconds
        self._moved_until = max(self._moved_until, self.now) + seconds
        return self._moved_until

    def wait(self, until: float, part: str = "waiting") -> None:
        """Let the first clock wait."""
        self.compute(part, max(0.0, until - self.now))


def simulate_step(
    config: RunConfig,
    hardware: Hardware,
    num_processes: int,
    width: float | None = None,
    load: ExpertLoad | None = None,
) -> StepTime:
    """Return what a step takes.

    Args:
        config: whose micro-batches and activation checkpointing are chosen.
        hardware: of each process.
        num_processes: that share the step.
        width: hidden units that a token activates per MoE layer; None: as under a uniform router.
        load: of the busiest process, where experts are placed.
    """
    step = _Step(config, hardware, num_processes, width, load)
    clocks, shares = _Clocks(hardware.overlap), step.shares
    for part in range(shares.num_parts):
        is_last = part == shares.num_parts - 1
        step.pass_forward(clocks, shares.gathers_each_time or part == 0, is_first=part == 0)
        step.pass_backward(clocks, sends=is_last or shares.reduces_each_part)
        step.add_gradients(clocks, part)
    step.update(clocks)
    tokens = config.data.batch_tokens
    flops = tokens * estimate_flops_per_token(config.model, config.data.sequence_length, width)
    seconds = clocks.now
    return StepTime(
        seconds,
        clocks.parts,
        clocks.sent,
        clocks.moved,
        tokens / seconds,
        flops / seconds / num_processes / hardware.peak_flops,
    )


class _Step:
    """What each pass of a step takes on a machine."""

    def __init__(
        self,
        config: RunConfig,
        hardware: Hardware,
        num_processes: int,
        width: float | None,
        load: ExpertLoad | None,
    ) -> None:
        self.shares: Shares = describe_shares(config, num_processes)
        self._hardware, self._model = hardware, config.model
        self._blocks = count_block_work(config.model, config.data.sequence_length, width)
        self._tokens = config.data.batch_tokens // config.data.num_micro_batches
        self._total = sum(count_parameters(config.model).values())
        self._outside = self._total - sum(block.parameters for block in self._blocks)
        self._placed = None if load is None else PlacementCosts(config, num_processes, load)
        self._shared = self._total - (0 if self._placed is None else self._placed.placed)
        self._recomputes = config.train.recomputes_blocks
        share = find_expert_share(config, num_processes, load)
        self._moves = time_offload(config, hardware, share, num_processes)
        self._link = hardware.choose_link(self.shares.group)
        self._replica_link = hardware.choose_link(num_processes)

    def pass_forward(self, clocks: _Clocks, gathers: bool, is_first: bool) -> None:
        """Compute the blocks, then the head; weights of the next one are on their way meanwhile."""
        arrival = self._gather(clocks, self._outside) if gathers else 0.0
        clocks.wait(arrival)
        arrival = self._gather_block(clocks, 0) if gathers else 0.0
        fetched = self._move(
            clocks, self._moves.first_forward if is_first else self._moves.forward, range(len(self._blocks))
        )
        for place, block in enumerate(self._blocks):
            clocks.wait(arrival)
            clocks.wait(fetched[place], _MOVING)
            if gathers and place + 1 < len(self._blocks):
                arrival = self._gather_block(clocks, place + 1)
            self._compute(clocks, block, 1.0)
            self._travel(clocks, block, backward=False)
        self._compute_head(clocks)

    def pass_backward(self, clocks: _Clocks, sends: bool) -> None:
        """Compute the gradients from the last block to the first, and send them on."""
        gathers, last = self.shares.gathers_each_time, 0.0
        arrival = self._gather_block(clocks, len(self._blocks) - 1) if gathers else 0.0
        fetched = self._move(clocks, self._moves.backward, reversed(range(len(self._blocks))))
        for place in reversed(range(len(self._blocks))):
            clocks.wait(arrival)
            clocks.wait(fetched[place], _MOVING)
            if gathers and place > 0:
                arrival = self._gather_block(clocks, place - 1)
            self._compute(clocks, self._blocks[place], _BACKWARD + self._recomputes)
            if self._recomputes:
                self._travel(clocks, self._blocks[place], backward=False)
            self._travel(clocks, self._blocks[place], backward=True)
            clocks.move(self._moves.gradients * self._share_moves(self._blocks[place]))
            if sends:
                last = self._reduce_block(clocks, place)
        if sends:
            last = self._reduce(clocks, self._outside)
        clocks.wait(last)

    def add_gradients(self, clocks: _Clocks, part: int) -> None:
        """Add a micro-batch's gradients to those of the ones before: whole ones, or the rows that are kept.

        In exact mode the rows of each process come by themselves.
        """
        kept = self._shared / (self.shares.group if self.shares.reduces_each_part else 1)
        if self._placed is not None:
            kept += self._placed.local / (self._placed.data_parallel if self.shares.reduces_each_part else 1)
        times = self.shares.group * self.shares.replicas - (part == 0) if self.shares.is_exact else part > 0
        clocks.compute(
            "adding gradients", times * ADDING_BYTES * kept / self._hardware.optimizer_bytes_per_second
        )

    def update(self, clocks: _Clocks) -> None:
        """Measure the norm of the gradients, and update the rows that the process keeps."""
        if self.shares.group * self.shares.replicas > 1:
            clocks.wait(clocks.send(self._replica_link.latency_seconds))
            clocks.compute("overhead", self._hardware.sharing_seconds)
        clocks.wait(clocks.move(self._moves.norm), _MOVING)
        rate = self._hardware.optimizer_bytes_per_second
        own = self._shared / self.shares.group
        if self._placed is not None:
            own += self._placed.local / self._placed.data_parallel
        clocks.compute("optimizer", OPTIMIZER_BYTES * own / rate)
        clocks.compute("overhead", self._hardware.step_seconds)

    def _compute(self, clocks: _Clocks, block: BlockWork, passes: float) -> None:
        width, h, tokens = self._model.dim, self._hardware, passes * self._tokens
        # Products of (tokens, dim) and (dim, hidden): rates are by the width of a model with hidden = 2 dim.
        inner = max(1, round((width * block.hidden / 2) ** 0.5))
        clocks.compute("attention", tokens * block.attention / get_rate(h.attention_flops, width))
        clocks.compute("attention", tokens * block.scores / get_rate(h.scores_flops, width))
        extra = self._placed.work - 1 if self._placed is not None else 0.0
        flops = block.experts + extra * block.routed
        clocks.compute("experts", tokens * flops / get_rate(h.experts_flops, inner))
        clocks.compute("feed-forward", tokens * block.ffn / get_rate(h.ffn_flops, inner))
        moved = tokens * block.moved_bytes / get_rate(h.elementwise_bytes_per_second, width)
        clocks.compute("norms, residuals, routing", moved)
        clocks.compute("overhead", passes / (1 + _BACKWARD) * h.block_seconds)

    def _compute_head(self, clocks: _Clocks) -> None:
        """Compute logits, loss and their gradients, which the loss makes in its forward pass."""
        flops = (1 + _BACKWARD) * 2.0 * self._model.vocab * self._model.dim * self._tokens
        clocks.compute("head and loss", flops / get_rate(self._hardware.head_flops, self._model.dim))

    def _travel(self, clocks: _Clocks, block: BlockWork, backward: bool) -> None:
        """Send a layer's tokens to their experts and back, or their gradients; all wait for it."""
        if self._placed is not None and block.expert_parameters:
            seconds = self._placed.measure_travel(self._hardware, self._tokens, backward)
            clocks.sent += seconds
            clocks.compute("tokens that travel", seconds)

    def _move(self, clocks: _Clocks, seconds: float, order: Iterable[int]) -> dict[int, float]:
        """Bring experts that lie elsewhere, block by block; return when those of each will be there."""
        return {place: clocks.move(seconds * self._share_moves(self._blocks[place])) for place in order}

    def _share_moves(self, block: BlockWork) -> float:
        """Return a block's share of what moves."""
        return bool(block.expert_parameters) / max(sum(b.expert_parameters > 0 for b in self._blocks), 1)

    def _gather_block(self, clocks: _Clocks, place: int) -> float:
        arrival = self._gather(clocks, self._count_shared(self._blocks[place]))
        local = self._share_local(self._blocks[place], reduces=False)
        return clocks.send(local) if local else arrival

    def _reduce_block(self, clocks: _Clocks, place: int) -> float:
        arrival = self._reduce(clocks, self._count_shared(self._blocks[place]))
        local = self._share_local(self._blocks[place], reduces=True)
        return clocks.send(local) if local else arrival

    def _count_shared(self, block: BlockWork) -> float:
        """Return the parameters of a block that all processes share."""
        placed = 0.0 if self._placed is None else self._placed.placed / len(self._model.moe_layers)
        return block.parameters - placed * bool(block.expert_parameters)

    def _share_local(self, block: BlockWork, reduces: bool) -> float:
        """Return the seconds in which those who hold the same experts share their weights or gradients."""
        placed = self._placed
        if placed is None or placed.data_parallel == 1 or not block.expert_parameters:
            return 0.0
        return _time(self._replica_link, placed.data_parallel, placed.count_local_bytes(), reduces)

    def _gather(self, clocks: _Clocks, parameters: float) -> float:
        return clocks.send(_time(self._link, self.shares.group, parameters * FLOAT_BYTES, reduces=False))

    def _reduce(self, clocks: _Clocks, parameters: float) -> float:
        size, replicas = parameters * FLOAT_BYTES, self.shares.replicas
        seconds = _time(self._link, self.shares.group, size, reduces=True)
        # Between groups that hold the same rows: a reduce-scatter and an all-gather of them.
        for reduces in (True, False):
            seconds += _time(self._replica_link, replicas, size / self.shares.group, reduces)
        return clocks.send(seconds)


def _time(link: Link, size: int, num_bytes: float, reduces: bool) -> float:
    """Return the seconds of a gathering or reducing operation of so many bytes, together, by `size` processes."""
    if size == 1:
        return 0.0
    rate = get_rate(link.reduce_bytes_per_second if reduces else link.gather_bytes_per_second, num_bytes)
    return link.latency_seconds + link.hop_seconds * (size - 1) + num_bytes * (size - 1) / size / rate
