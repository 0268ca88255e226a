"""One optimiser step: micro-batches -> losses -> gradients -> update, unless something is not finite."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from hmoe.config.counts import activated_parameters, training_flops
from hmoe.config.run import RunConfig
from hmoe.data.batches import MicroBatch
from hmoe.model import losses
from hmoe.model.attention import Sequences
from hmoe.model.balance import Tally, balance, tally
from hmoe.model.capacity import Slots
from hmoe.model.precision import mixed_precision
from hmoe.model.statistics import measure_routers
from hmoe.model.transformer import Transformer
from hmoe.train.feed import place_parts
from hmoe.train.optimizer import learning_rate
from hmoe.train.processes import ONE_PROCESS, Processes

_PRIME = 1_000_003  # seeds of steps and micro-batches must differ


@dataclass
class StepRecord:
    """What one step did; sums over micro-batches, means where a mean is named.

    Attributes:
        terms: loss (language model, nats per token), each auxiliary loss before its coefficient, loss_total.
        grad_norm: before clipping.
        applied: False if loss or gradients were not finite and the weights were left alone.
        pairs_LE: token-expert pairs per MoE layer and expert.
        slots: what a router with capacity did, by name (`hmoe.model.capacity.Slots`) and MoE layer; {} for others.
    """

    lr: float
    tokens: int
    flops: int = 0
    grad_norm: float = 0.0
    applied: bool = True
    terms: dict[str, float] = field(default_factory=dict)
    pairs_LE: list[list[int]] = field(default_factory=list)
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
) -> StepRecord:
    """Accumulate gradients over the micro-batches and update the weights; skip the update if anything is not finite.

    Router statistics, auxiliary losses and capacities are per micro-batch, per layer, then averaged over layers.

    Args:
        model: to be trained; its parameters may be sharded from outside (FSDP2), which then also adds up the gradients.
        optimizer: of the model's parameters.
        parts: canonical micro-batches of the step that this process computes (`Batches.parts`); arrays or tensors.
        config: of the run; `config.data.num_micro_batches` is the number of parts of all processes together.
        step: steps before this one; learning rate and random numbers depend on it.
        processes: all that compute this step.
    """
    placed = place_parts(parts, model.embed.weight.device)
    num_tokens = config.data.num_micro_batches * placed[0].tokens_BL.numel()
    record = StepRecord(lr=learning_rate(step, config.optim), tokens=num_tokens)
    passes = [_accumulate(model, part, config, step) for part in placed]
    names = passes[0].terms.keys()
    rows = [torch.stack(list(one_pass.terms.values())) / config.data.num_micro_batches for one_pass in passes]
    sums = processes.add(sum(rows, start=torch.zeros_like(rows[0])))
    counts = zip(*(one_pass.tally for one_pass in passes), strict=True)
    total = Tally(*(processes.add(torch.stack(tables).sum(0)) for tables in counts))
    parameters = [p for p in model.parameters() if p.requires_grad]
    norm = processes.norm([p.grad for p in parameters if p.grad is not None])
    numbers = read_numbers((sums, norm, total.pairs_LE, total.slots_SL, total.selections_L))
    record.terms = dict(zip(names, numbers[0], strict=True))
    record.grad_norm = numbers[1][0]
    _count(record, numbers[2:], config)
    _update(parameters, optimizer, norm, record, config)
    if record.applied:
        balance(model, total.asked_LE)
    return record


class _Pass(NamedTuple):
    """What is kept of one micro-batch: its losses without their graphs, and what was counted."""

    terms: dict[str, torch.Tensor]
    tally: Tally


def _accumulate(model: Transformer, part: MicroBatch[torch.Tensor], config: RunConfig, step: int) -> _Pass:
    """Add the gradients of one micro-batch, divided by the number of them, to those of the ones before."""
    device, moe = part.tokens_BL.device, config.model.moe
    noisy = moe is not None and moe.router.needs_noise  # a compiled block would be compiled again for every seed
    seed = (config.seed * _PRIME + step) * _PRIME + part.index if noisy else None
    with mixed_precision(device, config.train.precision == "bfloat16"):
        loss, routings = model(part.tokens_BL, part.targets_BL, Sequences(noise_seed=seed))
    # Statistics are those of this micro-batch, whoever computes it, so a run does not depend on the number of processes.
    terms = {"loss": loss, **({} if moe is None else losses.average_losses(measure_routers(routings), moe))}
    terms["loss_total"] = loss + losses.weighted(terms, moe)
    (terms["loss_total"] / config.data.num_micro_batches).backward()  # type: ignore[no-untyped-call]
    counts = tally(routings, device, moe is not None and moe.hyper is not None)
    return _Pass({name: value.detach() for name, value in terms.items()}, counts)


def read_numbers(tensors: Sequence[torch.Tensor]) -> list[list[float]]:
    """Their numbers, each tensor's flattened; the one place of a step where the host waits for the device.

    As float64, which holds counts below 2**53 and every float32 exactly.
    """
    numbers = torch.cat([tensor.detach().double().flatten() for tensor in tensors]).tolist()
    ends = list(itertools.accumulate(tensor.numel() for tensor in tensors))
    return [numbers[end - tensor.numel() : end] for end, tensor in zip(ends, tensors, strict=True)]


def _count(record: StepRecord, numbers: Sequence[Sequence[float]], config: RunConfig) -> None:
    """FLOPs and parameters of the experts really activated, and of the HyperExperts really made.

    `numbers` are those of `Tally`: pairs, slots, selections.
    """
    model, (pairs, slots, selections) = config.model, ([int(n) for n in part] for part in numbers)
    widths = model.moe.routed_widths if model.moe else ()
    record.pairs_LE = _rows(pairs, len(widths))
    record.slots = dict(zip(Slots._fields, _rows(slots, len(record.pairs_LE)), strict=False))
    units = sum(n * h for layer in record.pairs_LE for n, h in zip(layer, widths, strict=True))
    record.flops = training_flops(model, config.data.sequence_length, record.tokens, units, sum(selections))
    if record.pairs_LE:
        record.mean_activated_width = units / record.tokens / len(record.pairs_LE)
        record.experts_per_token = sum(pairs) / record.tokens / len(record.pairs_LE)
    record.activated_parameters = activated_parameters(model, record.mean_activated_width)


def _rows(numbers: Sequence[int], length: int) -> list[list[int]]:
    """Rows of so many numbers."""
    return [list(numbers[first : first + length]) for first in range(0, len(numbers), length)] if length else []


def _update(
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    norm: torch.Tensor,
    record: StepRecord,
    config: RunConfig,
) -> None:
    """Clip and step, unless loss or gradients are not finite."""
    record.applied = math.isfinite(record.terms["loss_total"]) and math.isfinite(record.grad_norm)
    if record.applied:  # a branch, never a multiplication: 0 x NaN is NaN
        if config.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.optim.clip, norm)
        for group in optimizer.param_groups:
            group["lr"] = record.lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
