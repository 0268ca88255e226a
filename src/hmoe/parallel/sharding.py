"""Which process holds which part of a model's weights: FSDP2 applied to blocks, from outside."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, TypeVar, cast, get_args

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hmoe.errors import ConfigError
from hmoe.model.moe import MoE
from hmoe.model.router import RouterLayer
from hmoe.parallel.expert_parallel import ExpertMesh, list_dispatched, place_layers, split_expert_mesh
from hmoe.parallel.expert_rows import ExpertRows
from hmoe.parallel.placement import place_experts
from hmoe.specs.placement import Placement

Sharding = Literal["ddp", "zero2", "zero3"]
ExpertSharding = Literal["ddp", "zero2", "zero3", "expert_parallel"]
MESH_AXES = ("replicate", "shard")
Model = TypeVar("Model", bound=nn.Module)
_Groups = dict[nn.Module, Sharding]


def parallelize(
    model: Model,
    mesh: DeviceMesh,
    *,
    shard: Sharding = "zero3",
    experts: ExpertSharding | None = None,
    placement: Placement | Sequence[Placement] | None = None,
    blocks: Iterable[nn.Module] | None = None,
    gradients: Literal["mean", "sum"] = "mean",
    prefetch: int = 1,
) -> Model:
    """Share a model's weights, gradients and moments among processes; the model itself is changed and returned.

    Every process calls it with the same model, before the optimiser is made. In each pass a weight must take part on
    all processes or on none; experts of `hmoe.MoE` without tokens do. Afterwards parameters are DTensors, all
    but biases of routers, which each process holds whole and moves by the counts of all; each process computes
    its own part of a batch, and gradients are added up in the backward pass. Weights need not be divisible by
    the number of processes: rows are cut as `torch.chunk` cuts them.

    `ddp` keeps everything in every process; `zero2` shares gradients and moments, and weights between steps; `zero3`
    also gathers a block's weights for its forward and its backward pass only. In a mesh of two axes, (replicate,
    shard), weights are shared along the second and repeated along the first.

    `experts="expert_parallel"` places whole experts, or parts of them, on processes, and sends tokens to them. Where a
    mesh of two axes has one named "expert", they are placed along that one and shared by `shard` along the other; all
    else is shared among all processes.

    Args:
        model: any module with a `forward`; layers of `hmoe.MoE` may be in it.
        mesh: of processes, with one axis or two.
        shard: how weights are shared.
        experts: how those of `hmoe.MoE` layers are, if otherwise; their router and extras belong to them, unless
            they are placed.
        placement: where experts live that are placed: one for all layers, or one for each; None: of
            `hmoe.parallel.placement.place_experts`, as if all were chosen alike often.
        blocks: modules whose weights are gathered together, from the first to the last; by default what lies
            in the outermost lists of modules (`nn.ModuleList`).
        gradients: the mean or the sum of those of the processes. The mean suits a loss that is a mean over a
            process's own tokens, if all have as many.

    Raises:
        ConfigError: for another choice, a mesh that does not fit it, or weights that cannot be shared.
    """
    _check_choices(shard, experts, gradients, prefetch)
    _check_placement(experts, placement)
    placed: ExpertMesh | None = None
    blocks = None if blocks is None else list(blocks)
    if experts == "expert_parallel":
        placed, experts = split_expert_mesh(mesh), None
        if shard == "ddp" and placed.data.size() > 1:
            raise ConfigError("parallelize: ddp shares no experts in a mesh of two axes; nearest is zero2")
        mesh = placed.whole
    groups = list_groups(model, blocks, shard, experts)
    _check_groups(model, groups)
    _check_mesh(mesh, set(groups.values()))
    if placed is not None:  # not before all else fits: weights are gone afterwards
        share = 1.0 if gradients == "sum" else 1 / mesh.size()
        place_layers(model, _list_placements(model, placement, placed.size), placed, share)
        groups = list_groups(model, blocks, shard, experts)
    _share_groups(groups, mesh, placed, _list_whole_parameters(model), gradients)
    _prefetch_blocks(model, groups, prefetch)
    return model


def _share_groups(
    groups: _Groups,
    mesh: DeviceMesh,
    placed: ExpertMesh | None,
    ignored: set[nn.Parameter],
    gradients: str,
) -> None:
    """Apply FSDP2 to each group of weights; experts that are placed are shared by those who hold the same ones."""
    meshes = {kind: _choose_mesh(mesh, kind) for kind in set(groups.values())}
    for module, kind in groups.items():
        # None: not after the forward pass of the whole model, whose own weights its backward pass begins with.
        reshard = None if kind == "zero3" else False
        is_placed = placed is not None and isinstance(module, ExpertRows)
        own_mesh = placed.data if placed is not None and is_placed else meshes[kind]
        fully_shard(module, mesh=own_mesh, reshard_after_forward=reshard, ignored_params=ignored)
        assert isinstance(module, FSDPModule)
        if gradients == "sum":
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        elif is_placed:
            module.set_gradient_divide_factor(float(mesh.size()))


def _list_placements(
    model: nn.Module, placement: Placement | Sequence[Placement] | None, num_ranks: int
) -> Sequence[Placement]:
    """Return a placement for each layer with experts."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    if not layers:
        raise ConfigError(
            'parallelize: experts = "expert_parallel": the model has no layer of hmoe.MoE; nearest is None'
        )
    if placement is None:
        return [place_experts(layer.widths, num_ranks) for layer in layers]
    return [placement] * len(layers) if isinstance(placement, Placement) else placement


def _list_whole_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return what the engine must leave alone: biases of routers, and experts that one process alone holds."""
    ignored = {
        parameter
        for module in model.modules()
        if isinstance(module, RouterLayer)
        for parameter in module.parameters()
        if not parameter.requires_grad
    }
    alone = [experts.local for experts in list_dispatched(model) if not experts.is_shared]
    return ignored | {parameter for rows in alone for parameter in rows.parameters()}


def _prefetch_blocks(model: nn.Module, groups: _Groups, num_ahead: int) -> None:
    """Let each block gather the weights of those after it ahead, and in the backward pass of those before it."""
    # Of the model itself, which is computed before and after all, everything outside of blocks stays gathered.
    ordered = [
        [module, *(part for part in module.modules() if isinstance(part, ExpertRows) and part in groups)]
        for module in model.modules()
        if module in groups and module is not model and not isinstance(module, ExpertRows)
    ]
    # Experts come with their block and ask for nothing: not all processes have some, and all must ask in one order.
    for place, (module, *experts) in enumerate(ordered):
        after, before = ordered[place + 1 : place + 1 + num_ahead], ordered[max(place - num_ahead, 0) : place]
        assert isinstance(module, FSDPModule)
        if num_ahead:
            module.set_modules_to_forward_prefetch(cast(list[FSDPModule], [*experts, *chain(*after)]))
            module.set_modules_to_backward_prefetch(cast(list[FSDPModule], list(chain(*before[::-1]))))
    # Without a list the engine asks for what was computed before, which differs where experts do: itself is nothing.
    if any(list_dispatched(model)):
        firsts = [module for module, *_ in ordered[: len(ordered) if not num_ahead else 1]]
        for module in [*firsts, *(part for part in groups if isinstance(part, ExpertRows))]:
            assert isinstance(module, FSDPModule)
            module.set_modules_to_backward_prefetch([module])


def list_groups(
    model: nn.Module, blocks: Iterable[nn.Module] | None, shard: Sharding, experts: Sharding | None
) -> _Groups:
    """Return the modules whose weights are gathered together and how, parts before what they are part of."""
    depths = {module: path.count(".") for path, module in model.named_modules()}
    groups: _Groups = {experts.local: shard for experts in list_dispatched(model) if experts.is_shared}
    if experts not in (None, shard):
        groups |= {module: experts for module in model.modules() if isinstance(module, MoE)}
    for block in _list_blocks(model) if blocks is None else blocks:
        groups.setdefault(block, shard)
    own = groups.pop(model, shard)  # it is the last, also where it is an MoE layer
    ordered = sorted(groups.items(), key=lambda group: -depths.get(group[0], 0))
    return dict([*ordered, (model, own)])


def _list_blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """Return what lies in the outermost lists of modules, and in lists in these."""
    for child in module.children():
        if not _has_forward(child):
            yield from _list_blocks(child, listed or isinstance(child, nn.ModuleList))
        elif listed:
            yield child
        else:
            yield from _list_blocks(child)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _check_choices(shard: object, experts: object, gradients: object, prefetch: int) -> None:
    """Raise ConfigError for what `parallelize` does not know."""
    kinds = get_args(Sharding)
    for name, value, choices in (
        ("shard", shard, kinds),
        ("experts", experts, (None, *get_args(ExpertSharding))),
        ("gradients", gradients, ("mean", "sum")),
    ):
        if value not in choices:
            words = ", ".join(map(str, choices))
            raise ConfigError(f"parallelize: {name} = {value!r}, must be one of {words}", argument=name)
    if prefetch < 0:
        raise ConfigError(
            f"parallelize: prefetch = {prefetch}, must be 0 or more blocks", argument="prefetch"
        )


def _check_placement(experts: object, placement: object) -> None:
    """Raise ConfigError for a placement that would have no effect."""
    if placement is not None and experts != "expert_parallel":
        raise ConfigError(
            f'parallelize: placement has no effect with experts = {experts!r}; nearest is "expert_parallel"',
            argument="placement",
        )


def _check_mesh(mesh: DeviceMesh, kinds: set[Sharding]) -> None:
    """Raise ConfigError for a mesh in which weights cannot be shared in these ways."""
    if mesh.ndim > len(MESH_AXES):
        axes = ", ".join(MESH_AXES)
        raise ConfigError(
            f"parallelize: mesh has {mesh.ndim} axes, must have 1 or 2 ({axes})", argument="mesh"
        )
    world = dist.get_world_size()
    if "ddp" in kinds and mesh.size() != world:
        raise ConfigError(
            f"parallelize: mesh has {mesh.size()} of {world} processes; ddp needs all, nearest is zero2",
            argument="mesh",
        )


def _check_groups(model: nn.Module, groups: _Groups) -> None:
    """Raise ConfigError for modules or weights that FSDP2 would refuse, or silently make two of."""
    names = {module: name for name, module in model.named_modules()}
    for module in groups:
        if module not in names:
            raise ConfigError("parallelize: blocks: one is no part of the model", argument="blocks")
        if not _has_forward(module):
            kind = type(module).__name__
            raise ConfigError(
                f"parallelize: {names[module] or 'model'}: a {kind} has no forward pass; give what is in it"
            )
    homes: dict[int, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}".removeprefix(".")
            if parameter.ndim == 0:
                raise ConfigError(f"parallelize: {full} is a number; weights must have one axis or more")
            home = _find_home(model, path, groups)
            other, first = homes.setdefault(id(parameter), (home, full))
            if other is not home:
                raise ConfigError(
                    f"parallelize: {first} and {full} are one parameter in two blocks; "
                    "it must belong to one, or to the model outside of all"
                )


def _find_home(model: nn.Module, path: str, groups: _Groups) -> nn.Module:
    """Return the innermost module around a place whose weights are gathered together."""
    parts = path.split(".") if path else []
    for end in range(len(parts), 0, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if module in groups:
            return module
    return model


def _choose_mesh(mesh: DeviceMesh, kind: Sharding) -> DeviceMesh:
    """Return the mesh along whose last axis weights of a kind are cut."""
    if kind != "ddp":
        return mesh
    # Cut into one part, which is repeated everywhere.
    ranks = mesh.mesh.reshape(-1, 1)
    return DeviceMesh(mesh.device_type, ranks, mesh_dim_names=MESH_AXES)
