"""What a training step needs of its device's memory, and how a batch is cut so that it fits. No torch."""

import math
import os
from typing import NamedTuple

from hmoe.config.available_memory import read_limit_bytes
from hmoe.config.counts import count_parameters, estimate_activated_width
from hmoe.config.cpu_memory import estimate_cpu_memory
from hmoe.config.offload import count_held_bytes, find_expert_share
from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import MOST_MICRO_BATCHES, RunConfig
from hmoe.config.weight_share import count_exact_sums
from hmoe.errors import ConfigError
from hmoe.specs.chunk import count_chunk_tokens
from hmoe.specs.model import ModelSpec
from hmoe.specs.placement import EVEN_LOAD, ExpertLoad
from hmoe.units import format_bytes

# Of a device's memory that a choice may fill: the rest is the context, libraries' workspaces and fragments.
SHARE = 0.85
ENOUGH_TOKENS = 32_768  # a GPU works no faster with larger micro-batches
FEWEST_TOKENS = 8_192  # with smaller ones it waits for the host, which costs more than computing blocks twice
MOST_EXACT_PARTS = 8  # a power of two; more cost speed in small batches
MEMORY_LEFT_OUT = {
    "cpu": (
        "the process itself, about half a GB: Python, PyTorch and data",
        "memory that lies free between tensors, up to as much again as those that come and go in a step",
    ),
    "cuda": (
        "the context and libraries' workspaces",
        "memory that lies free between tensors",
    ),
}
_ROUTER_NUMBERS = 10  # that a router keeps per token and expert: logits, scores, choices, places


class Device(NamedTuple):
    """What is known of a device before anything is on it: cpu or cuda, and all its memory."""

    kind: str
    memory_bytes: int


def read_host() -> Device:
    """Return the CPU of this machine, with the memory that this process may use of it.

    Raises:
        ConfigError: on a system that does not tell its memory.
    """
    try:
        page_bytes, num_pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        page_bytes = num_pages = 0
    if min(page_bytes, num_pages) <= 0:
        raise ConfigError(
            "this system does not tell how much memory it has (os.sysconf): planning and training need Linux or a "
            "system like it; on Windows use WSL"
        )
    limit = read_limit_bytes()
    return Device("cpu", page_bytes * num_pages if limit is None else min(limit, page_bytes * num_pages))


def choose_unset(
    config: RunConfig, device: Device, num_processes: int = 1, load: ExpertLoad | None = None
) -> RunConfig:
    """Choose data.micro_batches and train.activation_checkpointing for a device, where they are unset.

    On a GPU: the smallest micro-batch of at least ENOUGH_TOKENS whose step fits into SHARE of the memory,
    else the largest that does. Activations are checkpointed only where otherwise a micro-batch would have
    less than FEWEST_TOKENS, and then has more. It depends on the kind of device and its memory alone, so
    equal devices choose equally; router statistics are per micro-batch, so the choice is a part of the run.

    On a CPU: one micro-batch without checkpointing where that fits into the memory, else the largest that
    fits into SHARE of it, without checkpointing unless no size does: small products keep a CPU busy.

    In exact mode the number of micro-batches depends on the recipe alone, up to MOST_EXACT_PARTS that so many
    processes can share.

    With several processes, each on such a device, it is a number that they can share evenly (`check_processes`).

    Where nothing fits the smallest choice is returned; who trains it looks at `count_memory`.
    """
    if config.parallel.exact and config.data.micro_batches is None:
        parts = math.gcd(config.data.batch_sequences, MOST_EXACT_PARTS)
        data = config.data.model_copy(update={"micro_batches": parts})
        config = config.model_copy(update={"data": data})
    if config.data.micro_batches is not None and config.train.activation_checkpointing is not None:
        return config
    on_cpu = device.kind == "cpu"
    if on_cpu:
        fewest = config.data.micro_batches or num_processes
        plain = _with(config, fewest, bool(config.train.activation_checkpointing))
        if count_memory(plain, device.kind, num_processes, load) <= device.memory_bytes:
            return plain
    given_size = config.data.micro_batches
    sizes = [given_size] if given_size else _divisors(config, on_cpu, num_processes)
    given = config.train.activation_checkpointing
    choices = []
    for recompute in (False, True) if given is None else (given,):
        candidates = (_with(config, size, recompute) for size in sizes)
        choices += [next((c for c in candidates if _fits(c, device, num_processes, load)), None)]
    without, again = choices[0], choices[-1]
    if without is None or again is None:
        return without or again or _with(config, sizes[-1], given is not False)
    few = config.data.batch_tokens // without.data.num_micro_batches < (0 if on_cpu else FEWEST_TOKENS)
    return again if few and again.data.num_micro_batches < without.data.num_micro_batches else without


def _fits(config: RunConfig, device: Device, num_processes: int, load: ExpertLoad | None) -> bool:
    return count_memory(config, device.kind, num_processes, load) <= SHARE * device.memory_bytes


def describe_choice(
    config: RunConfig, device: Device, num_processes: int = 1, load: ExpertLoad | None = None
) -> str:
    """Describe in one line what was chosen, and what it needs of the device's memory."""
    parts, needed = config.data.num_micro_batches, count_memory(config, device.kind, num_processes, load)
    recomputing = (
        "activation checkpointing" if config.train.recomputes_blocks else "no activation checkpointing"
    )
    return (
        f"micro-batches: {parts} of {config.data.batch_tokens // parts:,} tokens, {recomputing}: "
        f"{format_bytes(needed)} of {format_bytes(device.memory_bytes)}"
    )


def count_memory(config: RunConfig, kind: str, num_processes: int = 1, load: ExpertLoad | None = None) -> int:
    """Return the bytes of a training step in all, see `estimate_memory_by_part`."""
    return sum(estimate_memory_by_part(config, kind, num_processes, load).values())


def estimate_memory_by_part(
    config: RunConfig, kind: str, num_processes: int = 1, load: ExpertLoad | None = None
) -> dict[str, int]:
    """Return the bytes of a training step on a kind of device (cpu, cuda), by part: tensors, of each process.

    Micro-batches and checkpointing must be chosen. Weights, gradients and both AdamW moments in float32
    (float64 doubles them). Activations are an estimate for one micro-batch; with activation checkpointing one block's,
    plus the input of each block. Copies are of weights, as bfloat16 or stacked, and one block's gradients before
    they are added.

    On a CPU it is what is there at the step's largest moment, under a uniform router (`hmoe.config.cpu_memory`); on a
    GPU the largest of each part, with room for the widest experts. The memory that the operating system counts is
    more: the process itself, and what lies free between tensors.

    Of several processes it is one's: its part of what they share (`parallel.shard`; experts as the rest), and what
    is gathered meanwhile, two blocks and what lies outside of blocks with zero3, all with the others. Gradients are
    whole where a process adds up several micro-batches, unless weights are gathered for each of them, too (zero3).
    Where experts are placed it is that of the process with the most; `load` tells what that has, None: an even part.
    """
    if kind == "cpu":
        return estimate_cpu_memory(config, num_processes, load)
    model, train = config.model, config.train
    weight = 8 if train.precision == "float64" else 4
    size = _Bytes(weight, 2 if train.precision == "bfloat16" else weight)
    parts = count_parameters(model)
    held = count_held_bytes(config, find_expert_share(config, num_processes, load))
    parts["experts"] *= num_processes > 1 or not held  # of several those that are placed are told apart below
    total, tokens = sum(parts.values()), config.data.batch_tokens // config.data.num_micro_batches
    placed = None
    if config.parallel.places_experts and num_processes > 1:
        placed = PlacementCosts(config, num_processes, load or EVEN_LOAD)
    block = (total - parts["embedding"] - parts["head"]) // model.layers
    computed = block
    if placed is not None:
        computed -= round((placed.placed - placed.local * (not held)) / model.layers)
    converted = computed if train.recomputes_blocks else model.layers * computed
    chunk = min(tokens, count_chunk_tokens(model.vocab, kind))
    loss = (
        2 * chunk * model.vocab * weight
        + (weight + 2 * size.compute) * model.vocab * model.dim
        + 2 * tokens * model.dim * weight
    )
    own, gathered, gradients = _count_shares(config, num_processes, total, block, placed)
    return {
        "parameters": weight * (own + gathered),
        "gradients": weight * gradients,
        "optimizer": 2 * weight * own,
        "copies": size.compute * converted * size.converts + (weight + size.compute) * computed,
        "activations": _count_activations(config, size, tokens, placed),
        "loss": loss,
        "offloaded experts": held,
    }


def _count_activations(config: RunConfig, size: "_Bytes", tokens: int, placed: PlacementCosts | None) -> int:
    """Return the bytes that a GPU keeps of a micro-batch for the backward pass."""
    model = config.model
    sparse = [layer in model.moe_layers for layer in range(model.layers)]
    busy = 1.0 if placed is None else placed.work
    saved = {each: round(tokens * _count_saved(model, each, size, busy)) for each in set(sparse)}
    if placed is not None:  # rows that came, and what their experts give
        saved[True] += round(tokens * (1 + placed.rows) * model.dim * size.compute)
    if config.train.recomputes_blocks:
        return max(saved.values()) + model.layers * tokens * model.dim * size.weight
    return sum(saved[is_sparse] for is_sparse in sparse)


def _count_shares(
    config: RunConfig, num_processes: int, total: int, block: int, placed: PlacementCosts | None
) -> tuple[int, int, int]:
    """Return a process's weights between steps, those it gathers besides in a step, and its gradients."""
    if placed is None:
        return _count_parts(config, num_processes, total, block)
    layers = config.model.layers
    rest, rest_of_block = (round(each) for each in (total - placed.placed, block - placed.placed / layers))
    shared = _count_parts(config, num_processes, rest, rest_of_block)
    if config.parallel.offload != "none":  # counted apart, as experts at hand
        return shared
    local = _count_parts(
        config, num_processes, round(placed.local), round(placed.local / layers), placed.data_parallel
    )
    return shared[0] + local[0], shared[1] + local[1], shared[2] + local[2]


def _count_parts(
    config: RunConfig, num_processes: int, total: int, block: int, group: int | None = None
) -> tuple[int, int, int]:
    """Return the same of weights that are shared in one way, by a group of processes or all."""
    sharding, parts = config.parallel.sharding, config.data.num_micro_batches
    sums = count_exact_sums(parts, num_processes) + 1 if config.parallel.exact else 1
    if num_processes == 1 or group == 1:  # nothing is gathered
        return total, 0, total * sums
    if sharding == "ddp":  # the engine gathers them, too, from this process alone
        return total, total, total * sums
    group = group or num_processes // config.parallel.replicas
    kept, outside = -(-total // group), total - config.model.layers * block
    adds_up = parts > num_processes and sharding != "zero3" and not config.parallel.exact
    return (
        kept,
        total if sharding == "zero2" else 2 * block + outside,
        total if adds_up else kept * sums + block,
    )


class _Bytes(NamedTuple):
    """Of a number: of the weights and the residual stream, and of what products take."""

    weight: int
    compute: int

    @property
    def converts(self) -> bool:
        """Whether autocast makes copies of what products take."""
        return self.compute < self.weight


def _count_saved(model: ModelSpec, sparse: bool, size: _Bytes, busy: float = 1.0) -> float:
    """Return the bytes that a GPU keeps per token and block for the backward pass.

    `busy` is how many times the mean of all processes its experts have to compute.
    Kernels keep x and pre-activations only. Autocast converts the input anew for every product that takes it;
    without it all keep the norm's output.
    """
    queries, keys = model.heads * model.head_width, model.num_kv_heads * model.head_width
    attended = 2 * queries + 2 * keys + (queries + keys if model.qk_norm else 0)  # q, k, v and the output
    stream = 2 * model.dim * size.weight
    attention = attended * size.compute + model.dim * (3 * size.compute if size.converts else size.weight)
    if not sparse:
        inputs = 2 * size.compute if size.converts else size.weight
        return stream + attention + model.dim * inputs + 4 * (model.ffn or 0) * size.compute
    moe = model.moe
    assert moe is not None
    inputs = size.weight + size.compute * size.converts  # the router takes what the norm gives
    hidden = 2 * busy * _room(model) + 4 * moe.shared + 2 * (moe.hyper.dim if moe.hyper else 0)
    router = _ROUTER_NUMBERS * 4 * len(moe.routed_widths)
    return stream + attention + model.dim * inputs + hidden * size.compute + router


def _room(model: ModelSpec) -> float:
    """Return the hidden units per token and MoE layer that a GPU takes memory for.

    Asking how many there are would wait for it, so there is room for the widest experts, as many as
    a token can choose (`hmoe.kernels.layer.bound_room`).
    """
    _, expected, most = estimate_activated_width(model)
    assert model.moe is not None
    return expected if model.moe.router.takes_agreed_tokens else most


def _divisors(config: RunConfig, on_cpu: bool, num_processes: int) -> list[int]:
    """Return the numbers of micro-batches to try, ascending; processes can share each of them evenly.

    With the first each holds ENOUGH_TOKENS on a GPU, a process's whole part of the batch on a CPU.
    """
    sequences, tokens = config.data.batch_sequences, config.data.batch_tokens
    most = min(sequences, MOST_MICRO_BATCHES)
    sizes = [n for n in range(num_processes, most + 1, num_processes) if sequences % n == 0]
    enough = [n for n in sizes if n == num_processes or tokens // n >= ENOUGH_TOKENS]
    return sizes if on_cpu else sizes[len(enough) - 1 :]


def _with(config: RunConfig, micro_batches: int, recompute: bool) -> RunConfig:
    data = config.data.model_copy(update={"micro_batches": micro_batches})
    train = config.train.model_copy(update={"activation_checkpointing": recompute})
    return config.model_copy(update={"data": data, "train": train})
