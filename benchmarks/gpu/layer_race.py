"""Stage 5: whole layers, with their router and without, beside a dense SwiGLU and transformers; where a layer's time goes."""

import functools
import importlib.util
from collections.abc import Callable, Mapping

import torch

import hmoe
from benchmarks.gpu.layers import SIZES, Size, layer, tiny
from benchmarks.gpu.setting import Case, Found, Setting
from benchmarks.gpu.timing import milliseconds, profile
from hmoe.bench.others import OTHERS
from hmoe.kernels import expert_ffn
from hmoe.model.layers import SwiGLU

Forward = Callable[[torch.Tensor], torch.Tensor]
Contender = tuple[Forward, list[torch.Tensor]]  # and its leaves, whose gradients must not add up


def cases(setting: Setting) -> Mapping[str, Case]:
    """Sizes in the order of their worth, the profile after the first."""
    names = ("0.4B",) if setting.dry else ("0.4B", "3B", "64 experts", "0.4B short")
    found: dict[str, Case] = {name: functools.partial(_race, setting, name) for name in names}
    first, *others = found
    return {first: found[first], "profile 0.4B": lambda: _profile(setting), **{name: found[name] for name in others}}


def _size(setting: Setting, name: str) -> Size:
    return tiny(SIZES[name]) if setting.dry else SIZES[name]


def _moe(size: Size, widths: tuple[int, ...], backend: str, device: str) -> hmoe.MoE:
    moe = hmoe.MoE(size.dim, widths, hmoe.TopK(size.k)).to(device, torch.bfloat16)
    moe.check_finite, moe.backend = False, backend
    torch.nn.init.normal_(moe.router.weight, std=size.dim**-0.5)
    return moe


def _contenders(size: Size, device: str) -> dict[str, Callable[[], Contender]]:
    """Made one at a time: they need not fit into memory together."""
    mean = sum(size.widths) // len(size.widths)
    equal = (mean,) * len(size.widths)

    def dense() -> Contender:
        module = SwiGLU(size.dim, size.k * mean).to(device, torch.bfloat16)
        module.reset_parameters()
        return module, list(module.parameters())

    def ours(widths: tuple[int, ...], backend: str) -> Contender:
        moe = _moe(size, widths, backend, device)
        return lambda x: moe(x)[0], list(moe.parameters())

    def experts(backend: str) -> Contender:
        given = layer(size, torch.bfloat16, device)
        leaves = [t.requires_grad_() for t in (given.gate_N, *given[4:7])]

        def run(x: torch.Tensor) -> torch.Tensor:
            return expert_ffn(x, given.token_N, leaves[0], given.num_tokens_E, *leaves[1:], given.widths, backend)

        return run, leaves

    def mixtral() -> Contender:
        make = OTHERS["transformers grouped_mm"][1]
        module, _, run = make(size.dim, mean, len(size.widths), size.k, device, torch.bfloat16)
        return run, list(module.parameters())

    found: dict[str, Callable[[], Contender]] = {
        "dense": dense, "hmoe triton": lambda: ours(size.widths, "triton"), "experts triton": lambda: experts("triton"),
        "hmoe loop": lambda: ours(size.widths, "loop"), "experts loop": lambda: experts("loop"),
        "hmoe equal": lambda: ours(equal, "triton"),
    }  # fmt: skip
    return {**found, "grouped_mm": mixtral} if importlib.util.find_spec("transformers") and device == "cuda" else found


def _both(forward: Forward, leaves: list[torch.Tensor], x: torch.Tensor, grad: torch.Tensor) -> None:
    for leaf in (x, *leaves):
        leaf.grad = None
    forward(x).backward(grad)


def _race(setting: Setting, name: str) -> Found:
    size = _size(setting, name)
    x, grad = (torch.randn(size.tokens, size.dim, device=setting.device).bfloat16() for _ in range(2))
    x.requires_grad_()
    rows: dict[str, dict[str, object]] = {}
    for label, make in _contenders(size, setting.device).items():
        try:
            forward, leaves = make()
            with torch.no_grad():
                rows[label] = {"forward": milliseconds(functools.partial(forward, x.detach()), setting.device)}
            rows[label]["both"] = milliseconds(functools.partial(_both, forward, leaves, x, grad), setting.device)
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


def _profile(setting: Setting) -> Found:
    size = _size(setting, "0.4B")
    moe = _moe(size, size.widths, "triton", setting.device)
    x, grad = (torch.randn(size.tokens, size.dim, device=setting.device).bfloat16() for _ in range(2))
    x.requires_grad_()
    run = functools.partial(_both, lambda x: moe(x)[0], list(moe.parameters()), x, grad)
    run()
    found = profile(run, setting.device, 15)
    return profile_line(found, 8), found


def profile_line(found: dict[str, object], most: int) -> str:
    """Launches, busy share and the longest kernels."""
    longest = ", ".join(f"{row['kernel'][:34]} {row['ms']:.2f}/{row['calls']}" for row in found["longest"][:most])  # type: ignore[index]
    return (
        f"{found['launches']} launches, busy {found['busy_ms']:.1f} of {found['wall_ms']:.1f} ms; ms/calls: {longest}"
    )
