"""How much is launched on a GPU for one layer in training: counted where nothing runs (meta), and in the interpreter.

The review that asked for it counted about 230 per layer.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.jit import KernelInterface

import hmoe
from hmoe import kernels
from hmoe.kernels import select
from hmoe.kernels.layer import Layer, bound_room
from hmoe.kernels.ragged import launch, router
from hmoe.model import losses
from tests.kernels.cases import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the interpreter")
REVIEWED = 230
LAYERS, DIM, WIDTHS, TOKENS = 3, 32, (16, 48, 96, 32), 12
NO_LAUNCH = {
    "empty",
    "new_empty",
    "empty_like",
    "new_empty_strided",
    "empty_strided",
    "detach",
    "_unsafe_view",
    "alias",
}


class Launches(TorchDispatchMode):
    """Counts operations that compute something; `hmoe::` operators by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.operators = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "hmoe":
            self.operators.append(name)
        elif not func.is_view and name not in NO_LAUNCH:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], int]:
    """Counts what a function launches: PyTorch's operations and Triton's kernels."""
    kernels_run: list[str] = []
    plain = KernelInterface.__getitem__

    def counted(self: Any, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            kernels_run.append(str(self))
            with _disable_current_modes():  # the interpreter copies
                plain(self, grid)(*args, **kwargs)

        return run

    monkeypatch.setattr(KernelInterface, "__getitem__", counted)

    def count(function: Callable[[], Any]) -> int:
        kernels_run.clear()
        with Launches() as launches:
            function()
        return launches.count + len(kernels_run)

    return count


def operators(count: Callable[[Callable[[], Any]], int]) -> dict[str, int]:
    """Launches inside each of our operators."""
    moe = hmoe.MoE(DIM, WIDTHS, hmoe.TopK(2)).bfloat16()
    x_TD = torch.randn(TOKENS, DIM).bfloat16()
    logits_TE, rule = torch.randn(TOKENS, len(WIDTHS)), select.Rule(2, 0.0, False, True, 1.0)
    selected = router.launch_selection(logits_TE, None, None, rule)
    weights = [w.detach() for w in (moe.w_gate, moe.w_up, moe.w_down)]
    layer = Layer(x_TD, selected[2], selected[1], selected[4], *weights, WIDTHS)  # type: ignore[arg-type]
    saved = launch.forward_triton(layer, bound_room(layer))[1]
    kept = (logits_TE, selected[5], selected[4], selected[6])
    return {
        "select_experts": count(lambda: router.launch_selection(logits_TE, None, None, rule)),
        "select_experts_backward": count(
            lambda: router.launch_selection_backward(logits_TE, selected[1], kept, rule)
        ),
        "expert_ffn": count(lambda: launch.forward_triton(layer, bound_room(layer))),
        "expert_ffn_backward": count(lambda: launch.backward_triton(layer, saved, x_TD, True)),
    }


def test_launches_of_a_layer_are_less_than_half_of_what_they_were(
    inside: Callable[[Callable[[], Any]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    within = operators(inside)
    monkeypatch.setattr("hmoe.model.router.fuses_router", lambda logits_TE: True)
    monkeypatch.setattr(kernels, "resolve_backend", lambda name, layer: "triton")
    layers = [hmoe.MoE(DIM, WIDTHS, hmoe.TopK(2)).to("meta") for _ in range(LAYERS)]
    for moe in layers:
        moe.check_finite = False
    x = torch.empty(TOKENS, DIM, device="meta", requires_grad=True)
    with Launches() as launches:
        routings = []
        y = x
        for moe in layers:
            y, routing = moe(y)
            routings.append(routing)
        terms = losses.compute_auxiliary_losses(routings, hmoe_config())
        (y.sum() + sum(terms.values())).backward()
    inner = sum(within[name] for name in launches.operators)
    per_layer = (launches.count + inner) / LAYERS
    assert launches.operators.count("expert_ffn_backward") == LAYERS
    assert per_layer <= min(REVIEWED / 2, 60), (launches.count, within)
    assert sum(within.values()) <= 40, within


def hmoe_config() -> Any:
    from hmoe.specs.model import MoESpec

    return MoESpec(widths=tuple(WIDTHS), router=hmoe.TopK(2), parameter_penalty=0.1)
