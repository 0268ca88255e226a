"""Layers whose experts are placed: their weights are cut by a placement, before FSDP2 shares what is left."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from hmoe.errors import ConfigError
from hmoe.model.expert_views import PlacedExperts
from hmoe.model.moe import MoE
from hmoe.parallel.dispatch import DispatchedExperts
from hmoe.parallel.expert_rows import WEIGHTS, ExpertRows
from hmoe.specs.placement import Placement

EXPERT_AXIS = "expert"


class ExpertMesh(NamedTuple):
    """The processes of a mesh, once by who places experts among them and once by who holds the same ones.

    Attributes:
        group: those among which the experts are placed, this one with them.
        size: of the group.
        data: those that hold the experts of this process, of one axis.
        whole: all, of one axis.
    """

    group: dist.ProcessGroup
    size: int
    data: DeviceMesh
    whole: DeviceMesh


def split_expert_mesh(mesh: DeviceMesh) -> ExpertMesh:
    """Return the groups of a mesh: with an axis "expert" the experts are placed along it, else among all.

    Raises:
        ConfigError: for a mesh that leaves open along which axis experts are placed.
    """
    names = mesh.mesh_dim_names or ()
    if mesh.size() != dist.get_world_size():
        raise ConfigError(
            f"parallelize: mesh has {mesh.size()} of {dist.get_world_size()} processes; to place experts it needs all",
            argument="mesh",
        )
    if mesh.mesh.flatten().tolist() != sorted(mesh.mesh.flatten().tolist()):
        raise ConfigError(
            f"parallelize: mesh = {mesh.mesh.tolist()}; to place experts its processes must be in rising order",
            argument="mesh",
        )
    if mesh.ndim == 1:
        alone = DeviceMesh(mesh.device_type, mesh.mesh.reshape(-1, 1), mesh_dim_names=(EXPERT_AXIS, "data"))
        return ExpertMesh(mesh.get_group(0), mesh.size(), alone["data"], mesh)
    if mesh.ndim > 2 or EXPERT_AXIS not in names:
        raise ConfigError(
            f"parallelize: mesh has axes {', '.join(names) or mesh.ndim}; to place experts it must have one axis, "
            f'or two of which one is named "{EXPERT_AXIS}"',
            argument="mesh",
        )
    data = next(name for name in names if name != EXPERT_AXIS)
    whole = DeviceMesh(mesh.device_type, mesh.mesh.flatten(), mesh_dim_names=("all",))
    return ExpertMesh(mesh.get_group(EXPERT_AXIS), mesh.size(names.index(EXPERT_AXIS)), mesh[data], whole)


def place_layers(model: nn.Module, placements: Sequence[Placement], meshes: ExpertMesh, share: float) -> None:
    """Let each MoE layer keep only the weights that its placement gives to this process.

    Args:
        model: whose layers hold all weights, or none on the meta device.
        placements: one for each layer of `hmoe.MoE`, in their order.
        meshes: of the processes.
        share: by which gradients of experts that one process alone holds are multiplied.

    Raises:
        ConfigError: for placements of other layers, or of another number of processes.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, MoE)]
    check_placements(placements, [(name, layer.widths) for name, layer in layers], meshes.size)
    check_same_placements(placements, meshes.whole)
    for (_, layer), placement in zip(layers, placements, strict=True):
        experts = DispatchedExperts(layer, placement, meshes.group)
        # The engine takes no weights without rows; all who share those of this process have none.
        experts.is_shared = meshes.data.size() > 1 and placement.count_units(experts.rank) > 0
        for name in WEIGHTS:
            setattr(layer, name, None)
        if not experts.is_shared:
            make_local(experts.local, meshes.data)
        experts.gradient_share = 1.0 if experts.is_shared else share
        layer.experts = cast(PlacedExperts, experts)


def list_dispatched(model: nn.Module) -> Iterator[DispatchedExperts]:
    """Return the placed experts of each layer, in the order of the layers."""
    for module in model.modules():
        if isinstance(module, DispatchedExperts):
            yield module


def make_local(rows: ExpertRows, data: DeviceMesh) -> None:
    """Make rows weights of this process alone: DTensors of a mesh with one process, as optimisers take no mixture."""
    for name in WEIGHTS:
        weight = getattr(rows, name)
        setattr(
            rows, name, nn.Parameter(wrap_local(weight.detach(), data), requires_grad=weight.requires_grad)
        )


def wrap_local(tensor: torch.Tensor, data: DeviceMesh) -> DTensor:
    """Return rows of this process alone as a DTensor of a mesh with one process; it is a view."""
    return DTensor.from_local(tensor, data, [Shard(0)], run_check=False)


def check_same_placements(placements: Sequence[Placement], mesh: DeviceMesh) -> None:
    """Raise ConfigError unless all processes have the same placements: they would wait for tokens that nobody sends."""
    content = json.dumps([placement.to_plain() for placement in placements]).encode()
    own = torch.tensor([int.from_bytes(hashlib.sha256(content).digest()[:7])], device=mesh.device_type)
    every = [torch.empty_like(own) for _ in range(mesh.size())]
    dist.all_gather(every, own, group=mesh.get_group(0))
    others = [rank for rank, each in enumerate(every) if int(each) != int(every[0])]
    if others:
        raise ConfigError(f"placement: process {others[0]} was given another one than process 0")


def check_placements(
    placements: Sequence[Placement], layers: Sequence[tuple[str, Sequence[int]]], num_ranks: int
) -> None:
    """Raise ConfigError unless each layer has a placement of its experts on so many processes."""
    if len(placements) != len(layers):
        raise ConfigError(f"placement: {len(placements)} are given for {len(layers)} layers with experts")
    for placement, (name, widths) in zip(placements, layers, strict=True):
        if placement.widths != tuple(widths):
            raise ConfigError(
                f"placement: {name} has experts of {tuple(widths)} units, the placement is of {placement.widths}"
            )
        if placement.num_ranks != num_ranks:
            raise ConfigError(
                f"placement: {name} is placed on {placement.num_ranks} processes, the group has {num_ranks}"
            )
