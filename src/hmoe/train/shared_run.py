"""What several processes do otherwise than one: they join, share the model, and each knows its device."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.parallel.begin import build_sharded_transformer
from hmoe.parallel.exact import ExactRanks
from hmoe.parallel.group import Messages, make_mesh
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.placement import choose_placements
from hmoe.parallel.ranks import Ranks
from hmoe.parallel.sharding import list_groups
from hmoe.specs.placement import Placement


def make_ranks(config: RunConfig, device: str, messages: Messages, local_size: int) -> Ranks:
    """Return the processes of a run, which have joined, as a run asks for them."""
    mesh = make_mesh(device, config.parallel.replicas, config.parallel.expert_ranks)
    ranks = ExactRanks(mesh, messages) if config.parallel.exact else Ranks(mesh, messages)
    ranks.local_size = local_size
    return ranks


def check_shared_folder(run: Path, messages: Messages) -> None:
    """Raise ConfigError unless every process sees the run folder that the first one has locked."""
    lock = run / ".lock"
    with messages.together():
        seen = lock.read_bytes().hex() if lock.is_file() else ""
    holder = messages.gather_values(seen)[0]
    with messages.together():
        if seen != holder:
            host = platform.node()
            raise ConfigError(
                f"{run}: a process on {host} does not see it; must be on storage that all processes share"
            )


def build_shared_model(
    config: RunConfig,
    ranks: Ranks,
    dtype: torch.dtype,
    placements: Sequence[Placement] | None = None,
    offloads: Callable[[Transformer], ExpertOffload] | None = None,
) -> Transformer:
    """Return the model of a run with its first weights, of which each process keeps its part.

    Args:
        config: of the run.
        ranks: the processes.
        dtype: of the weights.
        placements: of its layers with experts, if those are placed; None: as if all experts were chosen alike often.
        offloads: makes the experts of the shared model lie elsewhere; None: they do not.
    """
    parallel = config.parallel
    if parallel.places_experts and placements is None:
        placements = choose_placements(config, ranks.size)
    model = build_sharded_transformer(
        config.model, config.seed, ranks.mesh, dtype, offloads,
        shard=parallel.sharding, experts=parallel.experts, gradients="sum", placement=placements,
    )  # fmt: skip
    adopt_model(config, ranks, model)
    return model


def adopt_model(config: RunConfig, ranks: Ranks, model: Transformer) -> None:
    """Make a shared model ready for the steps of a run, also after its experts were placed anew."""
    parallel = config.parallel
    experts = None if parallel.experts == "expert_parallel" else parallel.experts
    groups = list_groups(model, None, parallel.sharding, experts)
    gathered = [module for module, kind in groups.items() if kind != "zero3"]
    ranks.adopt(model, config.data.num_micro_batches, gathered)
