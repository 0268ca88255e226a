"""Experts that are switched off: what a model does without some of its experts, whatever its router."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hmoe.model.router import route_tokens
from hmoe.model.routing import RouterInputs, Routing

if TYPE_CHECKING:
    from hmoe.model.transformer import Transformer


@contextlib.contextmanager
def switch_off_experts(model: "Transformer", off_by_layer: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Let the routers do without some experts for a while; `hmoe.model.trace.trace` says what that means.

    `off_by_layer` has the experts by MoE layer, counted from 0. A compiled model takes no notice.
    """
    # Hooks, so that no router has a state that somebody could forget to take back.
    hooks = []
    for layer, experts in off_by_layer.items():
        block: Any = model.blocks[model.config.moe_layers[layer]]
        router = block.ffn.router
        off_E = torch.zeros(len(router.widths), dtype=torch.bool)
        off_E[list(experts)] = True
        hooks.append(router.register_forward_hook(functools.partial(_route_without, off_E)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _route_without(off_E: torch.Tensor, router: Any, inputs: tuple[Any, ...], routing: Routing) -> Routing:
    """Route once more, without some experts: a forward hook of a `RouterLayer`."""
    device, logits_TE = routing.logits_TE.device, routing.logits_TE.cpu()
    # On the CPU, where pairs are listed as they are chosen: a GPU makes room for k of every token.
    given = inputs[1] if len(inputs) > 1 else RouterInputs()
    given = given._replace(**_move(given._asdict(), torch.device("cpu")))
    conditions = router.make_state(logits_TE.device)._replace(inputs=given, off_E=off_E)
    if conditions.bias_E is not None and not bool(off_E.all()):
        # A bias of their own could lift these experts' score of 0 above others'.
        least = conditions.bias_E[~off_E].min().clamp(max=0)
        conditions = conditions._replace(bias_E=torch.where(off_E, least, conditions.bias_E))
    rerouted = route_tokens(logits_TE, router.spec, conditions)
    return replace(rerouted, **_move(vars(rerouted), device))


def _move(fields: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the fields that are tensors, on this device."""
    return {name: value.to(device) for name, value in fields.items() if isinstance(value, torch.Tensor)}
