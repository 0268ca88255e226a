"""What `hmoe plan` tells of a recipe before anything is trained. No torch."""

import math
from typing import Any

from hmoe.config.counts import (
    count_activated_parameters,
    count_parameters,
    estimate_activated_width,
    estimate_flops_per_token,
)
from hmoe.config.cpu_memory import describe_largest_moment
from hmoe.config.hardware import Hardware
from hmoe.config.memory import (
    MEMORY_LEFT_OUT,
    Device,
    choose_unset,
    count_memory,
    estimate_memory_by_part,
    read_host,
)
from hmoe.config.offload import describe_offload_costs, find_expert_share
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.config.step_time import LEFT_OUT, simulate_step
from hmoe.config.traffic import count_traffic
from hmoe.specs.model import ModelSpec
from hmoe.specs.offload import count_fewest_bytes
from hmoe.specs.placement import ExpertLoad


def make_plan(
    config: RunConfig,
    device: Device | None = None,
    num_processes: int = 1,
    hardware: Hardware | None = None,
    load: ExpertLoad | None = None,
    width: float | None = None,
) -> dict[str, Any]:
    """Return what `hmoe plan` prints: sizes, FLOPs, tokens of the budget, memory on a device, and what a step takes.

    Args:
        config: of the run.
        device: of each process; None: that of the hardware, or a share of this machine's CPU.
        num_processes: that share the run.
        hardware: on which a step is simulated; None: its time is not told.
        load: of the busiest process, where experts are placed.
        width: hidden units that a token activates per MoE layer in the simulated step; None: a uniform router's.

    Raises:
        ConfigError: if so many processes cannot share the run.
    """
    if hardware is not None:
        device = Device(hardware.device, hardware.memory_bytes)
    device = device or read_host()
    check_processes(config, num_processes)
    config = choose_unset(config, device, num_processes, load)
    per_token = estimate_flops_per_token(config.model, config.data.sequence_length)
    per_token += _hyper_flops_per_token(config)
    tokens = _budget_tokens(config, per_token)
    plan = _describe_sizes(config, per_token, tokens) | _describe_memory(config, device, num_processes, load)
    without = _put_into_memory(config)
    if without is not config:
        size, share = (
            count_memory(without, device.kind, num_processes, load),
            find_expert_share(config, num_processes, load),
        )
        fits = (size, size <= device.memory_bytes)
        plan["offload"] = describe_offload_costs(config, share, num_processes, plan["memory_bytes"], fits)
    elif not plan["fits"]:
        plan["offload_advice"] = _advise_offload(config, device, num_processes, load)
    if hardware is not None:
        plan["step"] = _describe_step(config, hardware, num_processes, tokens, load, width)
        if without is not config:
            seconds = simulate_step(without, hardware, num_processes, width, load).seconds
            plan["offload"]["step_without_seconds"] = seconds
    return plan


def _put_into_memory(config: RunConfig) -> RunConfig:
    """Return a run with all experts in the device's memory; the same where they are."""
    if config.parallel.offload == "none":
        return config
    return config.model_copy(update={"parallel": config.parallel.without_offload()})


def _advise_offload(
    config: RunConfig, device: Device, num_processes: int, load: ExpertLoad | None
) -> dict[str, Any] | None:
    """Return what a run that does not fit would need with its experts elsewhere; None if they cannot be.

    A quarter of them at hand, or as few as can be.
    """
    place = "disk" if device.kind == "cpu" else "host"
    advice: dict[str, Any] | None = None
    model = config.model
    widths = [model.moe.expert_widths] * len(model.moe_layers) if model.moe else []
    for most in (None, count_fewest_bytes(widths, model.dim, itemsize=4)):
        keys = {"offload": place, "offload_bytes": most}
        elsewhere = config.model_copy(update={"parallel": config.parallel.model_copy(update=keys)})
        try:
            elsewhere.parallel.check_offload(model, config.train.precision, config.train.compile)
            check_processes(elsewhere, num_processes)
        except ValueError:  # a ConfigError is one
            return None
        size = count_memory(elsewhere, device.kind, num_processes, load)
        advice = {**keys, "memory_bytes": size, "fits": size <= device.memory_bytes}
        if advice["fits"]:
            break
    return advice


def _describe_sizes(config: RunConfig, per_token: float, tokens: int | None) -> dict[str, Any]:
    """Return parameters, FLOPs per token, and the budget in tokens, steps and FLOPs."""
    model = config.model
    least, expected, most = estimate_activated_width(model)
    activated = count_activated_parameters(model, expected)
    return {
        "total_parameters": sum(count_parameters(model).values()),
        "activated_parameters": round(activated),
        "activated_parameters_range": [
            round(count_activated_parameters(model, width)) for width in (least, most)
        ],
        "activated_assumption": _assumption(model),
        "parameters_by_part": count_parameters(model),
        "expert_widths": list(model.moe.expert_widths) if model.moe else [],
        "flops_per_token": round(per_token),
        "flops_per_token_6nd": round(6 * activated),
        "budget_tokens": tokens,
        "budget_steps": None if tokens is None else -(-tokens // config.data.batch_tokens),
        "budget_flops": None if tokens is None else round(tokens * per_token),
        "micro_batches": config.data.num_micro_batches,
        "micro_batch_tokens": config.data.batch_tokens // config.data.num_micro_batches,
        "activation_checkpointing": config.train.recomputes_blocks,
    }


def _describe_memory(
    config: RunConfig, device: Device, num_processes: int, load: ExpertLoad | None
) -> dict[str, Any]:
    """Return what each process holds, and what it sends in a step."""
    memory = estimate_memory_by_part(config, device.kind, num_processes, load)
    moment = describe_largest_moment(config, num_processes, load) if device.kind == "cpu" else None
    return {
        "device": device.kind,
        "device_memory_bytes": device.memory_bytes,
        "fits": sum(memory.values()) <= device.memory_bytes,
        "memory_bytes": sum(memory.values()),
        "memory_by_part_bytes": memory,
        "memory_moment": moment,
        "memory_left_out": list(MEMORY_LEFT_OUT[device.kind]),
        **({} if num_processes == 1 else _describe_sharing(config, num_processes, load, memory["optimizer"])),
    }


def _describe_sharing(
    config: RunConfig, num_processes: int, load: ExpertLoad | None, moment_bytes: int
) -> dict[str, Any]:
    """Return what each of several processes sends in a step, and what it copies to write a checkpoint meanwhile."""
    return {
        "processes": num_processes,
        "sent_bytes": vars(count_traffic(config, num_processes, load)),
        "checkpoint_bytes": moment_bytes * 3 // 2,  # both moments and the weights, in host memory
    }


def _describe_step(
    config: RunConfig,
    hardware: Hardware,
    num_processes: int,
    tokens: int | None,
    load: ExpertLoad | None,
    width: float | None,
) -> dict[str, Any]:
    """Return what a step takes on a machine, and the whole budget."""
    step = simulate_step(config, hardware, num_processes, width, load)
    return {
        "seconds": step.seconds,
        "by_part_seconds": step.by_part,
        "communication_seconds": step.communication_seconds,
        "moving_seconds": step.moving_seconds,
        "tokens_per_second": step.tokens_per_second,
        "mfu": step.mfu,
        "budget_seconds": None if tokens is None else tokens / step.tokens_per_second,
        "left_out": list(LEFT_OUT),
    }


def _hyper_flops_per_token(config: RunConfig) -> float:
    """Return the most FLOPs per token that making HyperExperts can take.

    They are made for every possible selection, or for each token if those are fewer.
    """
    model = config.model
    if model.moe is None or model.moe.hyper is None:
        return 0.0
    fewest, _, most = model.moe.router.count_experts_per_token(len(model.moe.routed_widths))
    tokens = config.data.batch_tokens // config.data.num_micro_batches
    possible = sum(math.comb(len(model.moe.routed_widths), chosen) for chosen in range(fewest, most + 1))
    share = min(possible, tokens) / tokens
    return 6.0 * model.moe.hyper.generation_parameters(model.dim) * len(model.moe_layers) * share


def _budget_tokens(config: RunConfig, per_token: float) -> int | None:
    """Return the tokens until the first of the recipe's budgets; None if only seconds bound it."""
    train = config.train
    limits = [
        train.steps and train.steps * config.data.batch_tokens,
        train.tokens,
        train.flops and int(train.flops / per_token),
    ]
    return min((limit for limit in limits if limit), default=None)


def _assumption(model: ModelSpec) -> str:
    if model.moe is None:
        return "dense: every parameter"
    return model.moe.router.describe_assumption(len(model.moe.routed_widths))
