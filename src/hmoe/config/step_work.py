"""What a training step computes and sends: FLOPs, bytes and parameters by part, from the recipe alone. No torch."""

from dataclasses import dataclass

from hmoe.config.counts import count_parameters, estimate_activated_width
from hmoe.config.run import RunConfig
from hmoe.specs.model import ModelSpec
from hmoe.specs.placement import ExpertLoad

FLOAT_BYTES = 4  # weights, gradients and the residual stream; AdamW keeps its moments so, too
ADDING_BYTES = 12  # of a gradient that is added to another: both read, the sum written
OPTIMIZER_BYTES = (
    28  # of a parameter: read with its gradient and two moments, and all but the gradient written
)


def count_number_bytes(config: RunConfig) -> int:
    """Return the bytes of a weight, a gradient or a moment; bfloat16 is of products alone."""
    return 8 if config.train.precision == "float64" else FLOAT_BYTES


@dataclass(frozen=True)
class BlockWork:
    """What a block computes of a token in a forward pass.

    Attributes:
        attention, scores, experts, ffn: FLOPs of the projections, of causal attention over the sequence, of the experts
            that are activated, and of a dense feed-forward layer; the router's are among the experts'.
        moved_bytes: that norms, residuals and the sorting of tokens read and write.
        parameters: of the block.
        expert_parameters: of these, those of routed experts.
        hidden: units of an expert in the mean, or of the dense layer.
    """

    attention: float
    scores: float
    experts: float
    ffn: float
    moved_bytes: float
    parameters: int
    expert_parameters: int
    hidden: float


def count_block_work(model: ModelSpec, context: int, width: float | None = None) -> list[BlockWork]:
    """Return the work of each block, for sequences of `context` tokens.

    Args:
        model: of the run.
        context: tokens of a sequence.
        width: hidden units that a token activates per MoE layer; None: as under a uniform router.
    """
    d = model.dim
    q_width, kv_width = model.heads * model.head_width, model.num_kv_heads * model.head_width
    parts = count_parameters(model)
    num_moe, num_dense = len(model.moe_layers), model.layers - len(model.moe_layers)
    sparse_parameters = sum(parts[name] for name in ("router", "experts", "shared", "zero", "hyper"))
    width = estimate_activated_width(model)[1] if width is None else width
    blocks = []
    for layer in range(model.layers):
        sparse = layer in model.moe_layers
        experts, pairs, hidden = 0.0, 0.0, float(model.ffn or 0)
        if sparse:
            assert model.moe is not None
            hidden = sum(model.moe.routed_widths) / len(model.moe.routed_widths)
            pairs = width / hidden
            experts = 6.0 * d * (width + model.moe.shared) + 2.0 * d * len(model.moe.routed_widths)
        own = sparse_parameters // num_moe if sparse else parts["ffn"] // max(num_dense, 1)
        blocks.append(
            BlockWork(
                attention=4.0 * d * (q_width + kv_width),
                scores=2.0 * context * q_width,
                experts=experts,
                ffn=0.0 if sparse else 6.0 * d * (model.ffn or 0),
                # Two norms (in, out), two residuals (in, in, out), rotation, and rows of the experts in and out.
                moved_bytes=FLOAT_BYTES * (10.0 * d + 4 * q_width + 4 * pairs * d),
                parameters=(parts["attention"] + parts["norms"]) // model.layers + own,
                expert_parameters=parts["experts"] // num_moe if sparse else 0,
                hidden=hidden,
            )
        )
    return blocks


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


@dataclass(frozen=True)
class Shares:
    """Who shares what: the numbers that follow from `parallel` and the number of processes.

    Attributes:
        num_parts: micro-batches of one process.
        group: processes that hold all weights between them; 1 with ddp.
        replicas: groups.
        gathers_each_time: whether weights are gathered for every pass, not once a step.
        reduces_each_part: whether gradients are sent after every micro-batch (exact mode, zero3).
        is_exact: whether they are added up in an order of their own.
    """

    num_parts: int
    group: int
    replicas: int
    gathers_each_time: bool
    reduces_each_part: bool
    is_exact: bool


def describe_shares(config: RunConfig, num_processes: int) -> Shares:
    """Return who shares what in a run whose micro-batches are chosen."""
    parallel = config.parallel
    is_ddp = (
        parallel.sharding == "ddp" or num_processes == 1
    )  # which shares nothing, whatever the recipe says
    replicas = num_processes if is_ddp else parallel.replicas
    return Shares(
        num_parts=config.data.num_micro_batches // num_processes,
        group=num_processes // replicas,
        replicas=replicas,
        gathers_each_time=parallel.sharding == "zero3",
        reduces_each_part=parallel.exact or parallel.sharding == "zero3",
        is_exact=parallel.exact,
    )


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
        data_parallel = num_processes // (config.parallel.expert_ranks or num_processes)
        own = load.units * placed * data_parallel / num_processes * (1 - 1 / data_parallel) * size
        gathered += own * times
        reduced += own * (shares.num_parts if shares.reduces_each_part else 1)
    return Traffic(gathered, reduced, repeated, travelling)


def count_row_bytes(config: RunConfig) -> float:
    """Return the bytes that travel for a row of a layer's tokens: there and back, and so do their gradients.

    Blocks that are computed again send their rows again.
    """
    number = 2 if config.train.precision == "bfloat16" else count_number_bytes(config)
    return (6 if config.train.recomputes_blocks else 4) * config.model.dim * number
