"""Weights of a shared model, drawn so that no process ever holds all of them."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hmoe.model.meta import build_on_meta
from hmoe.model.transformer import Transformer
from hmoe.parallel.kept_rows import list_kept_rows
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_model import put_experts, take_experts
from hmoe.parallel.sharding import parallelize
from hmoe.specs.model import ModelSpec


def build_sharded_transformer(
    config: ModelSpec,
    seed: int,
    mesh: DeviceMesh,
    dtype: torch.dtype = torch.float32,
    offloads: Callable[[Transformer], ExpertOffload] | None = None,
    **options: Any,
) -> Transformer:
    """Return a shared model with the weights of `build_transformer`, of which each process keeps its part.

    They are drawn on the CPU, a block (or the embedding, or the head) at a time: that, and a process's part of all,
    is the most that it holds.

    Args:
        config: of the model.
        seed: of the weights.
        mesh: of processes; the model is on its kind of device.
        dtype: of the weights.
        offloads: makes the experts of a shared model lie elsewhere, which it has on the meta device; None: all are in
            memory.
        options: of `parallelize`.
    """
    with build_on_meta():
        # The second is drawn block by block, and never whole.
        model, drawn = (Transformer(config).to(dtype) for _ in range(2))
    parallelize(model, mesh, **options)
    experts = [] if offloads is None else take_experts(model)
    model.to_empty(device=mesh.device_type)
    put_experts(experts)
    offload = None if offloads is None else offloads(model)
    with nullcontext() if offload is None else offload.look_at_all(changes=True):
        for name in drawn.list_parts():
            part = drawn.get_submodule(name)
            part.to_empty(device="cpu")
            drawn.init_weights(seed, name)
            _keep_own_rows(model.get_submodule(name), part)
            part.to(device="meta")
    return model


@torch.no_grad()
def _keep_own_rows(module: nn.Module, drawn: nn.Module) -> None:
    """Copy this process's rows of each parameter."""
    whole = dict(drawn.named_parameters())
    for kept in list_kept_rows(module):
        parameter = kept.parameter
        if isinstance(parameter, DTensor):
            own = [whole[kept.name][rows.start : rows.stop] for rows in kept.list_own()]
            parameter.to_local().copy_(torch.cat(own or [whole[kept.name][:0]]))
        else:
            parameter.copy_(whole[kept.name])
