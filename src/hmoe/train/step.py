"""One optimiser step: micro-batches -> losses -> gradients -> update, unless something is not finite."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from hmoe.config import RunConfig
from hmoe.count import activated_parameters, loss_chunk, training_flops
from hmoe.model import losses
from hmoe.model.attention import Sequences
from hmoe.model.balance import Tally, balance, tally
from hmoe.model.capacity import Slots
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.transformer import Transformer
from hmoe.train.feed import Batch, split
from hmoe.train.optim import learning_rate

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
    model: Transformer, optimizer: torch.optim.Optimizer, batch: Batch, config: RunConfig, step: int
) -> StepRecord:
    """Accumulate gradients over the micro-batches and update the weights; skip the update if anything is not finite.

    Router statistics, auxiliary losses and capacities are per micro-batch, per layer, then averaged over layers.
    """
    lr = learning_rate(step, config.optim)
    record = StepRecord(lr=lr, tokens=math.prod(batch[0].shape))
    device = model.embed.weight.device
    sums: dict[str, torch.Tensor] = {}
    tallies: list[Tally] = []
    parts = config.data.num_micro_batches
    for part, (tokens_BL, targets_BL) in enumerate(split(batch, parts, device)):
        context = Sequences(noise_seed=(config.seed * _PRIME + step) * _PRIME + part)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
            x_BLD, routings = model.hidden(tokens_BL, context)
            target_T = targets_BL.reshape(-1)
            chunk = loss_chunk(config.model.vocab, device.type)
            loss = cross_entropy(x_BLD.flatten(0, 1), model.head_weight, target_T, chunk)
        terms = {"loss": loss, **losses.auxiliary(routings, config.model.moe)}
        terms["loss_total"] = loss + losses.weighted(terms, config.model.moe)
        (terms["loss_total"] / parts).backward()  # type: ignore[no-untyped-call]
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / parts
        tallies.append(tally(routings, config.model.moe is not None and config.model.moe.hyper is not None))
    record.terms = {name: value.item() for name, value in sums.items()}
    total = Tally(*(torch.stack(counts).sum(0) for counts in zip(*tallies, strict=True)))
    _count(record, total, config)
    record.slots = dict(zip(Slots._fields, total.slots_SL.tolist(), strict=False))
    _update(model, optimizer, record, config)
    if record.applied:
        balance(model, total.asked_LE)
    return record


def _count(record: StepRecord, total: Tally, config: RunConfig) -> None:
    """FLOPs and parameters of the experts really activated, and of the HyperExperts really made."""
    model, pairs_LE = config.model, total.pairs_LE.tolist()
    widths = model.moe.routed_widths if model.moe else ()
    units = sum(n * h for layer in pairs_LE for n, h in zip(layer, widths, strict=True))
    record.pairs_LE = pairs_LE
    record.flops = training_flops(
        model, config.data.sequence_length, record.tokens, units, int(total.selections_L.sum())
    )
    if pairs_LE:
        record.mean_activated_width = units / record.tokens / len(pairs_LE)
        record.experts_per_token = sum(map(sum, pairs_LE)) / record.tokens / len(pairs_LE)
    record.activated_parameters = activated_parameters(model, record.mean_activated_width)


def _update(model: Transformer, optimizer: torch.optim.Optimizer, record: StepRecord, config: RunConfig) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    record.grad_norm = norm.item()
    record.applied = bool(np.isfinite([record.terms["loss_total"], record.grad_norm]).all())
    if record.applied:  # a branch, never a multiplication: 0 x NaN is NaN
        if config.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.optim.clip, norm)
        for group in optimizer.param_groups:
            group["lr"] = record.lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
