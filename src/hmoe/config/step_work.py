"""What a training step computes and sends: FLOPs, bytes and parameters by part, from the recipe alone. No torch."""

from dataclasses import dataclass

from hmoe.config.counts import count_parameters, estimate_activated_width
from hmoe.config.run import RunConfig
from hmoe.specs.model import ModelSpec

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
        routed: of the experts' FLOPs those of routed experts, without the shared one and the router.
        moved_bytes: that norms, residuals and the sorting of tokens read and write.
        parameters: of the block.
        expert_parameters: of these, those of routed experts.
        hidden: units of an expert in the mean, or of the dense layer.
    """

    attention: float
    scores: float
    experts: float
    routed: float
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
                routed=6.0 * d * width if sparse else 0.0,
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
