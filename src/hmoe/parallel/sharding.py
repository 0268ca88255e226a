"""Which process holds which part of a model's weights: FSDP2 applied to blocks, from outside."""

from collections.abc import Iterable
from typing import Literal, get_args

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hmoe.errors import ConfigError
from hmoe.model.moe import MoE

Sharding = Literal["ddp", "zero2", "zero3"]
MESH_AXES = ("replicate", "shard")


def parallelize(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    shard: Sharding = "zero3",
    experts: Sharding | None = None,
    blocks: Iterable[nn.Module] | None = None,
    gradients: Literal["mean", "sum"] = "mean",
) -> nn.Module:
    """Share a model's weights, gradients and moments among processes; the model itself is changed and returned.

    Every process calls it with the same model, before the optimiser is made. Afterwards parameters are DTensors,
    each process computes its own part of a batch, and gradients are added up in the backward pass. Weights
    need not be divisible by the number of processes: rows are cut as `torch.chunk` cuts them.

    `ddp` keeps everything in every process; `zero2` shares gradients and moments, and weights between steps; `zero3`
    also gathers a block's weights for its forward and its backward pass only. In a mesh of two axes, (replicate,
    shard), weights are shared along the second and repeated along the first.

    Args:
        model: any module; layers of `hmoe.MoE` may be in it.
        mesh: of processes, with one axis or two.
        shard: how weights are shared.
        experts: how those of `hmoe.MoE` layers are, if otherwise; their router and extras belong to them.
        blocks: modules whose weights are gathered together, from the first to the last; by default what lies
            in the outermost lists of modules (`nn.ModuleList`).
        gradients: the mean or the sum of those of the processes. The mean suits a loss that is a mean over a
            process's own tokens, if all have as many.

    Raises:
        ConfigError: for another choice, or a mesh of more axes.
    """
    _check_choices(mesh, shard, experts, gradients)
    meshes = {kind: _choose_mesh(mesh, kind) for kind in (shard, experts) if kind is not None}
    # What is not trained, as a router's bias, each process holds whole and moves by the counts of all.
    whole = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for module, kind in list_groups(model, blocks, shard, experts):
        fully_shard(
            module,
            mesh=meshes[kind],
            reshard_after_forward=kind == "zero3",
            ignored_params=whole,
        )
        assert isinstance(module, FSDPModule)
        if gradients == "sum":
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def _check_choices(mesh: DeviceMesh, shard: object, experts: object, gradients: object) -> None:
    """Raise ConfigError for what `parallelize` does not know."""
    kinds = get_args(Sharding)
    for name, value, choices in (
        ("shard", shard, kinds),
        ("experts", experts, (None, *kinds)),
        ("gradients", gradients, ("mean", "sum")),
    ):
        if value not in choices:
            words = ", ".join(map(str, choices))
            raise ConfigError(f"parallelize: {name} = {value!r}, must be one of {words}", argument=name)
    if mesh.ndim > len(MESH_AXES):
        axes = ", ".join(MESH_AXES)
        raise ConfigError(
            f"parallelize: mesh has {mesh.ndim} axes, must have 1 or 2 ({axes})", argument="mesh"
        )


def list_groups(
    model: nn.Module, blocks: Iterable[nn.Module] | None, shard: Sharding, experts: Sharding | None
) -> list[tuple[nn.Module, Sharding]]:
    """Return the modules whose weights are gathered together, parts before what they are part of."""
    groups: list[tuple[nn.Module, Sharding]] = []
    chosen = list(_list_blocks(model) if blocks is None else blocks)
    if experts not in (None, shard):
        groups += [(module, experts) for module in model.modules() if isinstance(module, MoE)]
    held = {module for module, _ in groups}
    groups += [(block, shard) for block in chosen if block not in held and block is not model]
    return groups if model in held else [*groups, (model, shard)]


def _list_blocks(module: nn.Module) -> Iterable[nn.Module]:
    """Return what lies in the outermost lists of modules."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _list_blocks(child)


def _choose_mesh(mesh: DeviceMesh, kind: Sharding) -> DeviceMesh:
    """Return the mesh along whose last axis weights of a kind are cut."""
    if kind != "ddp":
        return mesh
    # Cut into one part, which is repeated everywhere.
    ranks = mesh.mesh.reshape(-1, 1)
    return DeviceMesh(mesh.device_type, ranks, mesh_dim_names=MESH_AXES)
