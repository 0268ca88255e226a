"""Stage 5: whole layers and their experts alone, a dense SwiGLU, transformers; where a layer's time goes."""

import functools
import importlib.util
from collections.abc import Callable, Mapping

import torch

from benchmarks.gpu.layers import SIZES, make_layer, shrink
from benchmarks.gpu.setting import Case, Outcome, Setting
from benchmarks.gpu.timing import mean_milliseconds
from hmoe.bench.contenders import make_contender
from hmoe.bench.profile import profile_call
from hmoe.bench.shapes import LayerShape
from hmoe.kernels import expert_ffn

Forward = Callable[[torch.Tensor], torch.Tensor]
Leaves = list[torch.Tensor]  # whose gradients must not add up


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases: sizes in the order of their worth, the profile after the first."""
    names = ("0.4B",) if setting.dry else ("0.4B", "3B", "64 experts", "0.4B short")
    races: dict[str, Case] = {name: functools.partial(_race, setting, name) for name in names}
    first, *others = races
    return {
        first: races[first],
        "profile 0.4B": lambda: _profile(setting),
        **{name: races[name] for name in others},
    }


def _shape(setting: Setting, name: str) -> LayerShape:
    return shrink(SIZES[name]) if setting.dry else SIZES[name]


def _make(name: str, shape: LayerShape, device: str, backend: str | None = None) -> tuple[Forward, Leaves]:
    contender = make_contender(name, shape, torch.bfloat16, device)
    if backend:
        contender.module.backend = backend
    if contender.router is not None:
        torch.nn.init.normal_(contender.router, std=shape.dim**-0.5)
    return contender.forward, list(contender.module.parameters())


def _make_experts(backend: str, shape: LayerShape, device: str) -> tuple[Forward, Leaves]:
    given = make_layer(shape, torch.bfloat16, device)
    leaves = [t.requires_grad_() for t in (given.gate_N, *given[4:7])]

    def run(x: torch.Tensor) -> torch.Tensor:
        return expert_ffn(x, given.token_N, leaves[0], given.num_tokens_E, *leaves[1:], given.widths, backend)

    return run, leaves


def _contenders(shape: LayerShape, device: str) -> dict[str, Callable[[], tuple[Forward, Leaves]]]:
    """Return makers of the contenders: made one at a time, they need not fit into memory together."""

    def ours(name: str, backend: str | None = None) -> Callable[[], tuple[Forward, Leaves]]:
        return lambda: _make(name, shape, device, backend)

    def experts(backend: str) -> Callable[[], tuple[Forward, Leaves]]:
        return lambda: _make_experts(backend, shape, device)

    contenders = {
        "dense": ours("dense"), "hmoe triton": ours("hmoe triton"), "experts triton": experts("triton"),
        "hmoe loop": ours("hmoe loop"), "experts loop": experts("loop"), "hmoe equal": ours("hmoe equal", "triton"),
    }  # fmt: skip
    if importlib.util.find_spec("transformers") and device == "cuda":
        contenders["grouped_mm"] = ours("transformers grouped_mm")
    return contenders


def _both(forward: Forward, leaves: Leaves, x: torch.Tensor, grad: torch.Tensor) -> None:
    for leaf in (x, *leaves):
        leaf.grad = None
    forward(x).backward(grad)


def _race(setting: Setting, name: str) -> Outcome:
    shape = _shape(setting, name)
    x, grad = (torch.randn(shape.tokens, shape.dim, device=setting.device).bfloat16() for _ in range(2))
    x.requires_grad_()
    rows: dict[str, dict[str, object]] = {}
    for label, make in _contenders(shape, setting.device).items():
        try:
            forward, leaves = make()
            with torch.no_grad():
                rows[label] = {
                    "forward": mean_milliseconds(functools.partial(forward, x.detach()), setting.device)
                }
            rows[label]["both"] = mean_milliseconds(
                functools.partial(_both, forward, leaves, x, grad), setting.device
            )
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            rows[label] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    line = " | ".join(
        f"{label} FAILED {str(row['error'])[:120]}"
        if "error" in row
        else f"{label} {row['forward']:.2f} {row['both']:.2f}"
        for label, row in rows.items()
    )
    return f"ms forward, both: {line}", {"rows": rows}


def _profile(setting: Setting) -> Outcome:
    shape = _shape(setting, "0.4B")
    forward, leaves = _make("hmoe triton", shape, setting.device)
    x, grad = (torch.randn(shape.tokens, shape.dim, device=setting.device).bfloat16() for _ in range(2))
    x.requires_grad_()
    run = functools.partial(_both, forward, leaves, x, grad)
    run()
    profiled = profile_call(run, setting.device, 15)
    return format_profile(profiled, 8), profiled


def format_profile(profiled: dict[str, object], most: int) -> str:
    """Return a line with launches, busy milliseconds and the longest kernels."""
    longest = ", ".join(
        f"{row['kernel'][:34]} {row['ms']:.2f}/{row['calls']}" for row in profiled["longest"][:most]
    )  # type: ignore[index]
    return (
        f"{profiled['launches']} launches, busy {profiled['busy_ms']:.1f} of {profiled['wall_ms']:.1f} ms; "
        f"ms/calls: {longest}"
    )
