"""Where a model's layers hold their experts in this process: in the layer itself, or where they were placed."""

from typing import Any

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.model.moe import MoE
from hmoe.parallel.offloaded_layer import ExpertHome


def list_expert_homes(model: nn.Module) -> list[ExpertHome]:
    """Return one for each layer of `hmoe.MoE`.

    Raises:
        ConfigError: for experts that several processes share row by row, or in exact mode.
    """
    return [_find_home(layer) for layer in model.modules() if isinstance(layer, MoE)]


def _find_home(layer: MoE) -> ExpertHome:
    if layer.experts is None:
        return ExpertHome(layer, layer.dim, list(layer.widths), list(range(len(layer.widths))))
    from hmoe.parallel.dispatch import DispatchedExperts  # noqa: PLC0415 - one process needs no engine, slow to import
    from hmoe.parallel.expert_parallel import wrap_local  # noqa: PLC0415

    experts: Any = layer.experts
    assert isinstance(experts, DispatchedExperts)
    if experts.is_shared or experts.exact:
        how = "in exact mode" if experts.exact else "that other processes hold, too"
        raise ConfigError(f"offload: experts {how} stay in memory; nearest is no offload")
    weight: Any = experts.local.w_gate
    mesh = weight.device_mesh

    def wrap(tensor: torch.Tensor) -> torch.Tensor:
        return wrap_local(tensor, mesh)

    table = experts.table
    return ExpertHome(
        experts.local, layer.dim, list(table.widths), [part.expert for part in table.own],
        experts.gradient_share, wrap,
    )  # fmt: skip
