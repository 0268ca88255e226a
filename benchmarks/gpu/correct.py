"""Stage 2: every tile shape against float64, by the norm of the error; twice the same bits; the edges.

`torch.empty` gives NaN here, so what a kernel leaves unwritten is seen.
"""

import functools
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch

import hmoe
from benchmarks.gpu.compiling import compile_all, list_tasks
from benchmarks.gpu.layers import SIZES, make_layer, shrink
from benchmarks.gpu.setting import Case, Outcome, Setting, WrongResultError
from benchmarks.gpu.shapes import format_shape, list_candidates
from hmoe.bench.shapes import LayerShape
from hmoe.kernels import expert_ffn
from hmoe.kernels.layer import Layer
from hmoe.kernels.ragged.shapes import LAUNCHES, TileShape, force_shapes

NAMES = ("y", "dx", "dgate", "dw_gate", "dw_up", "dw_down")
ALLOWED = {  # relative to the norm of the true values
    torch.bfloat16: dict(zip(NAMES, (6e-3, 8e-3, 1e-2, 6e-3, 6e-3, 6e-3), strict=True)),
    torch.float16: dict.fromkeys(NAMES, 1e-3),
    torch.float32: dict.fromkeys(NAMES, 3e-6),
}
LAYERS = {
    "0.4B T=1000": (replace(SIZES["0.4B"], tokens=1000), False),
    "0.4B T=131": (replace(SIZES["0.4B"], tokens=131), False),
    "64 experts T=500": (replace(SIZES["64 experts"], tokens=500), False),
    "one empty T=300": (LayerShape(768, hmoe.arithmetic(12288, 8), 3, 300), True),
}


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases: compiling, then each layer and dtype, then the edges."""
    warnings.simplefilter("ignore")  # of operations that are not deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty
    wanted = [
        task
        for dtype in ("bfloat16", "float16", "float32")
        for experts in (8, 64)
        for task in list_tasks(dtype, 768, experts)
    ]
    wanted += [*list_tasks("bfloat16", 784, 4), *list_tasks("bfloat16", 1008, 1, most=1)]
    cases_by_name: dict[str, Case] = {"compile": lambda: compile_all(setting, wanted)}
    names = list(LAYERS)[1::2] if setting.dry else list(LAYERS)
    for name in names:
        for dtype in (torch.bfloat16, torch.float32) if setting.dry else ALLOWED:
            for index in range(max(len(list_candidates(launch, dtype)) for launch in LAUNCHES)):
                case = functools.partial(_case, setting, name, dtype, index)
                cases_by_name[f"{name} {str(dtype)[6:]} shape {index}"] = case
    cases_by_name["first call of a model width"] = functools.partial(_first_call, setting)
    cases_by_name["numel just below 2^31"] = functools.partial(_largest, setting)
    return cases_by_name


def compute(given: Layer, grad: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Return output and gradients in the order of NAMES."""
    x, gate, *weights = (t.detach().requires_grad_() for t in (given.x_TD, given.gate_N, *given[4:7]))
    y = expert_ffn(x, given.token_N, gate, given.num_tokens_E, *weights, given.widths, backend)
    y.backward(grad)
    return [y.detach(), *(t.grad for t in (x, gate, *weights) if t.grad is not None)]


@functools.lru_cache(maxsize=1)
def _truth(name: str, dtype: torch.dtype, device: str) -> tuple[Layer, torch.Tensor, list[torch.Tensor]]:
    size, empty = LAYERS[name]
    given = make_layer(shrink(size) if device == "cpu" else size, dtype, device, empty=empty)
    grad = torch.randn(given.x_TD.shape, device=device).to(dtype)
    exact = Layer(*(t.double() if t.is_floating_point() else t for t in given[:7]), given.widths)
    return given, grad, compute(exact, grad.double(), "reference")


def _case(setting: Setting, name: str, dtype: torch.dtype, index: int) -> Outcome:
    given, grad, truth = _truth(name, dtype, setting.device)
    chosen: dict[str, TileShape] = {}
    for launch in LAUNCHES:
        shapes = list_candidates(launch, dtype)
        chosen[launch] = shapes[index % len(shapes)]
    with force_shapes(chosen):
        first, second = (compute(given, grad, "triton") for _ in range(2))
    errors = {
        n: float((r.double() - t).norm() / t.norm()) for n, r, t in zip(NAMES, first, truth, strict=True)
    }
    slack = 4 if setting.dry else 1  # the interpreter cuts bfloat16 off instead of rounding it
    wrong = [n for n, error in errors.items() if not error <= slack * ALLOWED[dtype][n]]
    differing = [n for n, a, b in zip(NAMES, first, second, strict=True) if not torch.equal(a, b)]
    names = {launch: format_shape(shape) for launch, shape in chosen.items()}
    line = " ".join(f"{n} {error:.1e}" for n, error in errors.items())
    if wrong or differing:
        what = f"wrong: {wrong}, not the same bits twice: {differing}; {line}; {names}"
        raise WrongResultError(what, {"errors": errors, "shapes": names, "differing": differing})
    share, worst = max((error / ALLOWED[dtype][n], n) for n, error in errors.items())
    return f"at worst {share:.0%} of what is allowed ({worst})", {"errors": errors, "shapes": names}


def _first_call(setting: Setting) -> Outcome:
    """Compute a layer of a model width that nothing was compiled for."""
    size = LayerShape(784, (256, 512, 128, 384), 2, 300)
    given = make_layer(shrink(size) if setting.dry else size, torch.bfloat16, setting.device)
    grad = torch.randn_like(given.x_TD)
    first, second = (compute(given, grad, "triton") for _ in range(2))
    differing = [n for n, a, b in zip(NAMES, first, second, strict=True) if not torch.equal(a, b)]
    if differing:
        raise WrongResultError(f"the first call differs from the second in {differing}", differing)
    return "same bits as the second", None


def _largest(setting: Setting) -> Outcome:
    """Compute a layer with offsets near the end of 32 bits; compare a sample of tokens with float64."""
    tokens, dim = (40, 32) if setting.dry else (2_130_000, 1008)
    size = LayerShape(dim, (16,), 1, tokens)
    given = make_layer(size, torch.bfloat16, setting.device)
    grad = torch.randn_like(given.x_TD)
    torch.use_deterministic_algorithms(False)  # NaN into six tensors of 4 GB each is not needed here
    results = compute(given, grad, "triton")[:3]
    sample = torch.cat(
        [torch.arange(20), torch.randint(tokens, (960,)), torch.arange(tokens - 20, tokens)]
    ).to(setting.device)
    count = torch.tensor([len(sample)], device=setting.device)
    pairs = (torch.arange(len(sample), device=setting.device), given.gate_N[sample].double(), count)
    part = Layer(given.x_TD[sample].double(), *pairs, *(w.double() for w in given[4:7]), given.widths)  # type: ignore[arg-type]
    truth = compute(part, grad[sample].double(), "reference")[:3]
    torch.use_deterministic_algorithms(True, warn_only=True)
    errors = {
        n: float((r[sample].double() - t).norm() / t.norm())
        for n, r, t in zip(NAMES, results, truth, strict=False)
    }
    line = f"{tokens} x {dim}: " + " ".join(f"{n} {error:.1e}" for n, error in errors.items())
    if not all(error < 3e-2 for error in errors.values()):
        raise WrongResultError(line, errors)
    return line, errors
