"""One optimiser step: micro-batches -> losses -> gradients -> update, unless something is not finite.

Axes of counts: `Z` MoE layers, `E` experts.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from hmoe.config.counts import count_activated_parameters, count_training_flops
from hmoe.config.run import RunConfig
from hmoe.data.batches import MicroBatch
from hmoe.model import losses
from hmoe.model.attention import Sequences
from hmoe.model.balance import RoutingCounts, count_routings, update_router_biases
from hmoe.model.batch_loads import BatchLoads
from hmoe.model.capacity import CapacityCounts
from hmoe.model.precision import use_mixed_precision
from hmoe.model.routing import Routing
from hmoe.model.statistics import measure_routers
from hmoe.model.transformer import Transformer
from hmoe.parallel.offload import ExpertOffload
from hmoe.train.feed import place_parts
from hmoe.train.optimizer import compute_learning_rate
from hmoe.train.processes import ONE_PROCESS, Processes

# Seeds of noise are positions in a number of this base: run, step, micro-batch, and in the model layer.
_SEED_BASE = 1_000_003


@dataclass
class StepRecord:
    """What one optimiser step did: sums over its micro-batches, and means where a mean is named.

    Attributes:
        lr: learning rate of the update.
        tokens: tokens that were predicted.
        flops: training FLOPs, of the experts that were really activated.
        grad_norm: before clipping.
        applied: False if loss or gradients were not finite and the weights were left alone.
        terms: loss (language model, nats per token), each auxiliary loss before its coefficient, loss_total.
        num_pairs_ZE: token-expert pairs that were computed.
        slots: what a router with capacity did, by name
            (`hmoe.model.capacity.CapacityCounts`) and MoE layer; {} for others.
        activated_parameters: of a token, on average.
        mean_activated_width: hidden units of routed experts that a token activated,
            mean over tokens and MoE layers.
        experts_per_token: mean over tokens and MoE layers.
    """

    lr: float
    tokens: int
    flops: int = 0
    grad_norm: float = 0.0
    applied: bool = True
    terms: dict[str, float] = field(default_factory=dict)
    num_pairs_ZE: list[list[int]] = field(default_factory=list)
    slots: dict[str, list[int]] = field(default_factory=dict)
    activated_parameters: float = 0.0
    mean_activated_width: float = 0.0
    experts_per_token: float = 0.0


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[MicroBatch[Any]],
    config: RunConfig,
    step: int,
    processes: Processes = ONE_PROCESS,
    offload: ExpertOffload | None = None,
) -> StepRecord:
    """Accumulate gradients over micro-batches and update the weights, unless anything is not finite.

    Router statistics, auxiliary losses and capacities are per micro-batch, per layer, then averaged over layers;
    with `moe.statistics: batch` loads are of the batch so far (`hmoe.model.batch_loads`), of processes with
    exact results of the whole batch, for which they compute every forward pass twice.

    Args:
        model: to be trained; its parameters may be sharded from outside (FSDP2), which
            then also adds up the gradients.
        optimizer: of the model's parameters.
        parts: canonical micro-batches of the step that this process computes, at least one (`Batches.parts`):
            those numbered rank, rank + size, rank + 2 size, ...
        config: of the run; `config.data.num_micro_batches` is the number of parts of all processes together.
        step: steps before this one; learning rate and random numbers depend on it.
        processes: all that compute this step.
        offload: of the model's experts, where they lie outside of the device's memory.
    """
    placed = place_parts(parts, model.embed.weight.device)
    # Of all processes: the parts of a step are of one size.
    num_tokens = config.data.num_micro_batches * placed[0].tokens_BL.numel()
    record = StepRecord(lr=compute_learning_rate(step, config.optim), tokens=num_tokens)
    loads = _make_batch_loads(model, placed, config, step, processes)
    passes = []
    for part in placed:
        processes.begin_part(model, is_last=part is placed[-1])
        passes.append(_accumulate(model, part, config, step, loads))
    processes.end_parts(model)
    means, counts = _reduce(passes, config.data.num_micro_batches, processes)
    parameters = [p for p in model.parameters() if p.requires_grad]
    tables = (counts.num_pairs_ZE, counts.slots, counts.num_selections_Z)
    with contextlib.nullcontext() if offload is None else offload.attach_gradients():
        # A weight that had no part in any loss has no gradient.
        norm = processes.norm([p.grad for p in parameters if p.grad is not None])
        terms, norms, *table_values = read_numbers((means, norm, *tables))
    record.terms = dict(zip(passes[0].terms, terms, strict=True))
    record.grad_norm = norms[0]
    _count(record, table_values, config)
    _update(parameters, optimizer, norm, record, config, processes, offload)
    if record.applied:
        # After the update: the biases of this step chose the experts whose gradients were just applied.
        update_router_biases(model, counts.num_asked_ZE)
    return record


class _Pass(NamedTuple):
    """What is kept of one micro-batch: its losses without their graphs, and what was counted."""

    terms: dict[str, torch.Tensor]
    counts: RoutingCounts


def _make_batch_loads(
    model: Transformer,
    parts: Sequence[MicroBatch[torch.Tensor]],
    config: RunConfig,
    step: int,
    processes: Processes,
) -> BatchLoads | None:
    """Return what gives losses the loads of a batch, None where they count those of a micro-batch."""
    if config.model.moe is None or config.model.moe.statistics != "batch":
        return None
    if not processes.exact:
        return BatchLoads(processes.add)
    # Loads of the batch so far would depend on how many micro-batches are computed side by side.
    with torch.no_grad():
        measured = [measure_routers(_compute(model, part, config, step)[1]) for part in parts]
    return BatchLoads.of_all(measured, processes.add)


def _compute(
    model: Transformer, part: MicroBatch[torch.Tensor], config: RunConfig, step: int
) -> tuple[torch.Tensor, list[Routing]]:
    """Return loss and routings of one micro-batch, the same whenever it is computed."""
    moe = config.model.moe
    # Without noise no seed at all: a compiled block would be compiled again for each.
    noisy = moe is not None and moe.router.needs_noise
    seed = (config.seed * _SEED_BASE + step) * _SEED_BASE + part.index if noisy else None
    with use_mixed_precision(part.tokens_BL.device, config.train.precision == "bfloat16"):
        loss, routings = model(part.tokens_BL, part.targets_BL, Sequences(noise_seed=seed))
    return loss, routings


def _accumulate(
    model: Transformer,
    part: MicroBatch[torch.Tensor],
    config: RunConfig,
    step: int,
    loads: BatchLoads | None,
) -> _Pass:
    """Add the gradients of one micro-batch, divided by the number of them, to those of the ones before."""
    device, moe = part.tokens_BL.device, config.model.moe
    loss, routings = _compute(model, part, config, step)
    terms: dict[str, torch.Tensor] = {"loss": loss}
    if moe is not None:
        # Statistics are those of one micro-batch, whoever computes it: a run does not
        # depend on the number of processes. With `loads` it does: they are of all side by side.
        statistics = measure_routers(routings)
        terms |= losses.average_losses(statistics if loads is None else loads.include(statistics), moe)
    terms["loss_total"] = loss + losses.sum_weighted_losses(terms, moe)
    # Gradients add up over micro-batches and processes: divided here, their sum is the gradient of the mean.
    (terms["loss_total"] / config.data.num_micro_batches).backward()  # type: ignore[no-untyped-call]
    counts = count_routings(routings, device, moe is not None and moe.hyper is not None)
    return _Pass({name: value.detach() for name, value in terms.items()}, counts)


def _reduce(
    passes: Sequence[_Pass], num_parts: int, processes: Processes
) -> tuple[torch.Tensor, RoutingCounts]:
    """Return the mean of each loss over all micro-batches of the step, and the sums of the counts."""
    own = [torch.stack(list(micro_batch.terms.values())) / num_parts for micro_batch in passes]
    # In the order of the micro-batches, whoever computed them: the sum has the same bits then.
    rounds = zip(*(part.unbind() for part in processes.gather(torch.stack(own))), strict=True)
    rows = [row for one_round in rounds for row in one_round]
    means = sum(rows, start=torch.zeros_like(rows[0]))
    tables = zip(*(micro_batch.counts for micro_batch in passes), strict=True)
    return means, RoutingCounts(*(processes.add(torch.stack(parts).sum(0)) for parts in tables))


def read_numbers(tensors: Sequence[torch.Tensor]) -> list[list[float]]:
    """Return the numbers of each tensor, flattened.

    This is the one place of a step where the host waits for the device. They are read as float64, which holds
    counts below 2**53 and every float32 exactly.
    """
    # One copy of everything: a copy of each would be as many waits, in which the device has nothing to do.
    numbers = torch.cat([tensor.detach().double().flatten() for tensor in tensors]).tolist()
    ends = list(itertools.accumulate(tensor.numel() for tensor in tensors))
    return [numbers[end - tensor.numel() : end] for end, tensor in zip(ends, tensors, strict=True)]


def _count(record: StepRecord, tables: Sequence[Sequence[float]], config: RunConfig) -> None:
    """Write down FLOPs and parameters of the experts that were activated and the HyperExperts generated.

    `tables` are the flattened counts of `RoutingCounts`: pairs, slots, selections.
    """
    model, (num_pairs, slots, num_selections) = (
        config.model,
        ([int(count) for count in table] for table in tables),
    )
    widths = model.moe.routed_widths if model.moe else ()
    record.num_pairs_ZE = _cut_rows(num_pairs, len(widths))
    record.slots = dict(zip(CapacityCounts._fields, _cut_rows(slots, len(record.num_pairs_ZE)), strict=False))
    units = sum(
        count * width for row in record.num_pairs_ZE for count, width in zip(row, widths, strict=True)
    )
    record.flops = count_training_flops(
        model, config.data.sequence_length, record.tokens, units, sum(num_selections)
    )
    if record.num_pairs_ZE:
        record.mean_activated_width = units / record.tokens / len(record.num_pairs_ZE)
        record.experts_per_token = sum(num_pairs) / record.tokens / len(record.num_pairs_ZE)
    record.activated_parameters = count_activated_parameters(model, record.mean_activated_width)


def _cut_rows(values: Sequence[int], length: int) -> list[list[int]]:
    """Return the rows of a table that was flattened; a table without columns has none."""
    return [list(values[first : first + length]) for first in range(0, len(values), length)] if length else []


def _update(
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    norm: torch.Tensor,
    record: StepRecord,
    config: RunConfig,
    processes: Processes,
    offload: ExpertOffload | None,
) -> None:
    """Clip the gradients and step, unless loss or gradients are not finite; then drop the gradients."""
    record.applied = math.isfinite(record.terms["loss_total"]) and math.isfinite(record.grad_norm)
    if record.applied:  # a branch, never a multiplication: 0 x NaN is NaN
        limit = config.optim.clip
        if limit is not None:
            processes.clip(parameters, limit, norm)
        for group in optimizer.param_groups:
            group["lr"] = record.lr
        optimizer.step()
        if offload is not None:
            offload.step(optimizer, None if limit is None else partial(_clip_part, processes, limit, norm))
            offload.pin_busiest(record.num_pairs_ZE)
    # Set to None and not to 0: the first micro-batch of the next step then writes its
    # gradients without reading zeros.
    optimizer.zero_grad(set_to_none=True)


def _clip_part(processes: Processes, limit: float, norm: torch.Tensor, gradient: torch.Tensor) -> None:
    """Scale a part of the gradients as all of them are scaled."""
    holder = torch.nn.Parameter(torch.empty_like(gradient), requires_grad=False)
    holder.grad = gradient
    processes.clip([holder], limit, norm)
