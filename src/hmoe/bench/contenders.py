"""Who races in `hmoe bench layer`: our layer with each backend, a dense one, and those of other libraries."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

import hmoe
from hmoe.bench.others import OTHERS
from hmoe.bench.shapes import LayerShape
from hmoe.errors import ConfigError
from hmoe.kernels import choice
from hmoe.kernels.layer import Layer
from hmoe.model.layers import SwiGLU

BACKENDS = {  # of our contenders; None: the one that `hmoe.kernels.choice` takes
    "hmoe": None, "hmoe equal": None, "hmoe triton": "triton", "hmoe loop": "loop", "hmoe eager loop": "reference",
}  # fmt: skip
CONTENDERS = (*BACKENDS, *OTHERS)


@dataclass
class Contender:
    """A layer in the race.

    Attributes:
        forward: computes the layer.
        count_units: counts, on the host, the hidden units that the last call activated, over all tokens.
        module: holds the parameters.
        router: its router's weight; None for a dense layer.
        seconds, activated_units: time and hidden units of every round.
        wall_seconds: the time by the clock, on a GPU.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    count_units: Callable[[], float]
    module: torch.nn.Module
    router: torch.Tensor | None = None
    seconds: list[float] = field(default_factory=list)
    activated_units: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)


def make_contender(name: str, shape: LayerShape, dtype: torch.dtype, device: str) -> Contender:
    """Make one of CONTENDERS, or `dense`: the limit, of the same activated FLOPs."""
    experts, mean = len(shape.widths), sum(shape.widths) // len(shape.widths)
    if name in BACKENDS:
        widths = hmoe.equal(mean * experts, experts) if name == "hmoe equal" else shape.widths
        return _make_ours(shape, widths, BACKENDS[name], dtype, device)

    def activated() -> float:
        return float(shape.tokens * shape.k * mean)

    if name == "dense":
        dense = SwiGLU(shape.dim, shape.k * mean).to(device, dtype)
        dense.reset_parameters()
        return Contender(dense, activated, dense)
    module, router, forward = OTHERS[name][1](shape.dim, mean, experts, shape.k, device, dtype)
    return Contender(forward, activated, module, router)


def _make_ours(
    shape: LayerShape, widths: tuple[int, ...], backend: str | None, dtype: torch.dtype, device: str
) -> Contender:
    moe = hmoe.MoE(shape.dim, widths, hmoe.TopK(shape.k)).to(device, dtype)
    moe.check_finite, moe.backend = False, backend  # the check would wait for the device
    counts: list[torch.Tensor] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor
        y, routing = moe(x)
        counts[:] = [routing.num_tokens_E]  # left on the device: reading them would wait for it
        return y

    def activated() -> float:
        return float(sum(n * h for n, h in zip(counts[0].tolist(), widths, strict=True)))

    return Contender(forward, activated, moe, moe.router.weight)


def explain_contender_refusal(name: str, shape: LayerShape, dtype: torch.dtype, device: str) -> str | None:
    """Return why a contender cannot run here, or None."""
    if name in OTHERS:
        module = OTHERS[name][0]
        return None if importlib.util.find_spec(module) else f"{module} is not installed"
    if BACKENDS[name] != "triton":
        return None
    if device == "cpu":  # also where Triton's interpreter could run it: its times are not the kernels'
        return "the Triton kernels run on a GPU, with device = cuda"
    x, index = torch.empty(shape.tokens, shape.dim, dtype=dtype, device=device), torch.empty(0, device=device)
    return choice.explain_refusal("triton", Layer(x, index, index, index, x, x, x, shape.widths))


def check_contenders(
    names: Sequence[str], shapes: Mapping[str, LayerShape], dtypes: Sequence[str], device: str
) -> None:
    """Raise ConfigError for a contender that was asked for and cannot run."""
    for name in names:
        if name not in CONTENDERS:
            raise ConfigError(f"against = {name}: must be one of {', '.join(CONTENDERS)}", argument="against")
    for name in names:
        for shape in shapes.values():
            for dtype in dtypes:
                reason = explain_contender_refusal(name, shape, getattr(torch, dtype), device)
                if reason:
                    raise ConfigError(
                        f"against = {name}: {reason}; nearest choice: hmoe loop",
                        argument=("against", "device"),
                    )
