"""What a number of processes must fit, and how a run says that it has several. No torch."""

from hmoe.config.parallel import ParallelConfig
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError


def check_processes(config: RunConfig, num_processes: int) -> None:
    """Raise ConfigError if a run cannot be shared by so many processes, naming the numbers that could."""
    if num_processes == 1:
        return
    parallel, data = config.parallel, config.data
    if parallel.shard == "none":
        raise ConfigError(
            f"parallel.shard = none: is for one process, this run was started with {num_processes}; nearest is ddp"
        )
    key, parts = (
        ("data.micro_batches", data.micro_batches)
        if data.micro_batches is not None
        else ("data.batch_tokens / data.sequence_length", data.batch_sequences)
    )
    if parts % num_processes:
        fitting = [n for n in range(1, parts + 1) if parts % n == 0]
        nearest = sorted(sorted(fitting, key=lambda n: abs(n - num_processes))[:8])
        raise ConfigError(
            f"{key} = {parts}: {num_processes} processes cannot share that evenly; "
            f"start {', '.join(map(str, nearest[:-1]))} or {nearest[-1]}"
            if len(nearest) > 1
            else f"{key} = {parts}: there is nothing to share among {num_processes} processes; start 1"
        )
    if num_processes % parallel.replicas:
        raise ConfigError(
            f"parallel.replicas = {parallel.replicas}: must divide the {num_processes} processes of this run"
        )
    if parallel.places_experts:
        _check_placed_experts(config, num_processes)
    if parallel.offload != "none":
        _check_offloaded_experts(config, num_processes)


def _check_placed_experts(config: RunConfig, num_processes: int) -> None:
    """Raise ConfigError if experts cannot be placed on so many processes."""
    parallel, moe = config.parallel, config.model.moe
    if moe is None:
        raise ConfigError("parallel.experts = expert_parallel: the model has no experts; nearest is null")
    if parallel.expert_replicas > len(moe.expert_widths):
        raise ConfigError(
            f"parallel.expert_replicas = {parallel.expert_replicas}: the model has {len(moe.expert_widths)} experts"
        )
    group = parallel.expert_ranks or num_processes
    if parallel.shard == "ddp" and group != num_processes:
        raise ConfigError(
            f"parallel.expert_ranks = {group}: with parallel.shard = ddp must be all {num_processes} processes; "
            "nearest is parallel.shard = zero2"
        )
    fitting = [n for n in range(1, num_processes + 1) if num_processes % n == 0]
    if parallel.exact:  # sums of a whole group must be sums of the fixed tree
        fitting = [n for n in fitting if n == num_processes or n & (n - 1) == 0]
    if group not in fitting:
        why = " and with exact = true be a power of two, or all" if num_processes % group == 0 else ""
        nearest = min(fitting, key=lambda n: abs(n - group))
        raise ConfigError(
            f"parallel.expert_ranks = {group}: must divide the {num_processes} processes of this run{why}; "
            f"nearest is {nearest}"
        )


def _check_offloaded_experts(config: RunConfig, num_processes: int) -> None:
    """Raise ConfigError if several processes cannot have their experts elsewhere."""
    parallel = config.parallel
    asked = f"with parallel.offload = {parallel.offload} and {num_processes} processes"
    if not parallel.places_experts:
        raise ConfigError(
            f"parallel.experts = {parallel.experts or 'null'}: {asked} must be expert_parallel, by which each process "
            "has experts of its own"
        )
    if parallel.expert_ranks not in (None, num_processes):
        raise ConfigError(
            f"parallel.expert_ranks = {parallel.expert_ranks}: {asked} must be all of them; nearest is null"
        )
    if parallel.replace_every:
        raise ConfigError(
            f"parallel.replace_every = {parallel.replace_every}: {asked} must be 0: experts stay"
        )


def describe_processes(config: ParallelConfig, num_processes: int) -> str:
    """Return a line on how a run's processes share it; "" for one process that needs no word."""
    mode = "exact: the same bits with any number of processes" if config.exact else ""
    if num_processes == 1:
        return f"processes: 1, {mode}" if mode else ""
    parts = [f"processes: {num_processes}", config.sharding]
    if config.places_experts:
        parts += [f"experts placed on {config.expert_ranks or num_processes}"]
    elif config.experts:
        parts += [f"experts {config.experts}"]
    parts += [f"{config.replicas} replicas"] if config.replicas > 1 else []
    return ", ".join([*parts, mode or "fast: bits depend on their number"])
