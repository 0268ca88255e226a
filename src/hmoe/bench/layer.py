"""How fast is hmoe.MoE, beside a dense SwiGLU of the same activated FLOPs (the limit) and beside other people's layers?

A ratio is dense time / layer time at equal activated FLOPs. Routing is fresh at every step: one that repeats hides what
training pays. Other libraries' experts are equal, of the same total width.

    hmoe bench layer, or where only PyTorch is installed: python -m hmoe.bench.layer [--device cuda] [--threads 1]
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hmoe
from hmoe.bench.measure import check_device, interleaved, machine, median, peak_flops, read_bandwidth, save
from hmoe.bench.others import OTHERS
from hmoe.errors import ConfigError, HMoEError
from hmoe.kernels import expert_ffn
from hmoe.model.layers import SwiGLU


@dataclass(frozen=True)
class Shape:
    """A layer and its batch."""

    dim: int
    widths: tuple[int, ...]
    k: int
    tokens: int


SHAPES = {
    "0.4B": Shape(768, hmoe.arithmetic(12288, 8), 2, 4096),
    "small": Shape(256, hmoe.arithmetic(2048, 8, multiple=16), 2, 4096),
    "64-experts": Shape(768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 8, 4096),
    "0.4B-long": Shape(768, hmoe.arithmetic(12288, 8), 2, 32768),
    "3B-long": Shape(1024, hmoe.arithmetic(32768, 8), 2, 32768),
    "64-experts-long": Shape(768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 8, 32768),
}
ON = {"cpu": ("0.4B", "small", "64-experts"), "cuda": ("0.4B-long", "3B-long", "64-experts-long", "0.4B")}


@dataclass
class Contender:
    """A layer in the race; `units` counts the hidden units its last call activated, over all tokens."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    units: Callable[[], float]
    module: torch.nn.Module
    router: torch.Tensor | None = None
    seconds: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)


def contenders(shape: Shape, dtype: torch.dtype, device: str, names: Sequence[str]) -> dict[str, Contender]:
    """Those of `names` that can run here; the dense limit is always the first."""
    mean = sum(shape.widths) // len(shape.widths)
    dense = SwiGLU(shape.dim, shape.k * mean).to(device, dtype)
    dense.reset_parameters()
    found = {"dense": Contender(dense, lambda: float(shape.tokens * shape.k * mean), dense)}
    for name in names:
        if name.startswith("hmoe"):
            equal = hmoe.equal(mean * len(shape.widths), len(shape.widths))
            found[name] = _ours(shape, equal if "equal" in name else shape.widths, name, dtype, device)
        elif importlib.util.find_spec(OTHERS[name][0]):
            module, router, forward = OTHERS[name][1](shape.dim, mean, len(shape.widths), shape.k, device, dtype)
            found[name] = Contender(forward, found["dense"].units, module, router)
    return found


def _ours(shape: Shape, widths: tuple[int, ...], name: str, dtype: torch.dtype, device: str) -> Contender:
    moe = hmoe.MoE(shape.dim, widths, hmoe.TopK(shape.k)).to(device, dtype)
    moe.check_finite = False
    moe.backend = {"hmoe": None, "hmoe equal": None, "hmoe loop": "loop", "hmoe eager loop": "reference"}[name]
    counts = torch.zeros(len(widths), device=device)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor
        y, routing = moe(x)
        counts.copy_(routing.num_tokens_E)
        return y

    return Contender(
        forward, lambda: float(counts.double().cpu() @ torch.tensor(widths).double()), moe, moe.router.weight
    )


def race(
    shape: Shape, dtype: torch.dtype, device: str, backward: bool, rounds: int, names: Sequence[str]
) -> dict[str, Contender]:
    """Seconds and activated units of every contender in every round."""
    found = contenders(shape, dtype, device, names)
    grad = torch.randn(shape.tokens, shape.dim, device=device).to(dtype)
    inputs: list[torch.Tensor] = [grad]

    def fresh() -> None:
        inputs[0] = torch.randn(shape.tokens, shape.dim, device=device).to(dtype).requires_grad_(backward)
        for contender in found.values():
            contender.module.zero_grad()
            if contender.router is not None:
                torch.nn.init.normal_(contender.router, std=shape.dim**-0.5)

    def run(contender: Contender) -> Callable[[], None]:
        def once() -> None:
            if backward:
                inputs[0].grad = None
                torch.autograd.backward(contender.forward(inputs[0]), grad)
            else:
                with torch.no_grad():
                    contender.forward(inputs[0])
            contender.done.append(contender.units())

        return once

    times = interleaved({name: run(c) for name, c in found.items()}, rounds, warm=3, device=device, before=fresh)
    for name, contender in found.items():
        contender.seconds, contender.done = times[name], contender.done[-rounds:]
    return found


def rows_of(
    shape: Shape, dtype: torch.dtype, backward: bool, found: dict[str, Contender], limits: dict[str, float]
) -> list[dict[str, Any]]:
    """A row per contender: milliseconds, ratio, FLOP/s, least bytes, share of the roofline."""
    rows = []
    passes, size = 3 if backward else 1, dtype.itemsize
    dense = found["dense"]
    for name, contender in found.items():
        each = zip(dense.seconds, dense.done, contender.seconds, contender.done, strict=True)
        ratio = median((ds / du) / (s / u) for ds, du, s, u in each)
        flops = passes * 6 * shape.dim * median(contender.done)
        weights = sum(p.numel() for p in contender.module.parameters()) * size
        tokens = 2 * shape.tokens * shape.dim * size
        # Least traffic: weights and tokens once, in training also pre-activations out and in, gradients out.
        least = weights + tokens + (weights + tokens + 4 * median(contender.done) * size if backward else 0)
        shortest = max(flops / limits["flops"], least / limits["bytes"])
        time = median(contender.seconds)
        rows.append({
            "contender": name, "dtype": str(dtype)[6:], "pass": "forward+backward" if backward else "forward",
            "ms": 1e3 * time, "ratio": ratio, "tflops_per_second": flops / time / 1e12, "least_megabytes": least / 1e6,
            "roofline_share": shortest / time,
        })  # fmt: skip
    return rows


def check(shape: Shape, dtype: torch.dtype, device: str) -> None:
    """What is about to be timed is right: on some tokens, output and gradients against the float64 definition.

    Raises:
        HMoEError: if the layer's largest error is above twice that of plain PyTorch in the same precision.
    """
    tokens = min(shape.tokens, 257)
    x = torch.randn(tokens, shape.dim, device=device).to(dtype)
    moe = hmoe.MoE(shape.dim, shape.widths, hmoe.TopK(shape.k)).to(device, dtype)
    torch.nn.init.normal_(moe.router.weight, std=shape.dim**-0.5)
    with torch.no_grad():
        routing = moe.router(x)
    results = {}
    for name, backend, kind in (
        ("truth", "reference", torch.float64),
        ("plain", "reference", dtype),
        ("ours", None, dtype),
    ):
        inputs, gate, up, down = (t.detach().to(kind).requires_grad_() for t in (x, moe.w_gate, moe.w_up, moe.w_down))
        gates = routing.gate_N.to(torch.float64 if kind == torch.float64 else torch.float32).requires_grad_()
        y = expert_ffn(inputs, routing.token_N, gates, routing.num_tokens_E, gate, up, down, shape.widths, backend)
        torch.autograd.backward(y, x.to(kind))
        results[name] = [y.detach(), *(t.grad for t in (gates, inputs, gate, up, down) if t.grad is not None)]
    for label, truth, plain, ours in zip(
        ("y", "dgate", "dx", "dw_gate", "dw_up", "dw_down"), *results.values(), strict=True
    ):
        error, allowed = ((r.double() - truth).abs().max() for r in (ours, plain))
        if error > 2 * allowed + 1e-6 * truth.abs().max():
            raise HMoEError(
                f"{label} of {shape}, {dtype}: error {error:.2e} above twice PyTorch's {allowed:.2e}; nothing was timed"
            )


def measure(
    shapes: dict[str, Shape],
    dtypes: Sequence[str],
    device: str,
    rounds: int,
    names: Sequence[str],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """All rows, said as they come."""
    say(
        f"{'shape':16s} {'dtype':9s} {'pass':17s} {'contender':24s} {'ms':>9s} {'ratio':>6s} {'TFLOP/s':>8s} {'MB':>7s} roofline"
    )
    rows = []
    bandwidth = read_bandwidth(device)
    for dtype_name in dtypes:
        dtype = getattr(torch, dtype_name)
        limits = {"flops": peak_flops(dtype, device), "bytes": bandwidth}
        for name, shape in shapes.items():
            check(shape, dtype, device)
            for backward in (True, False):
                found = race(shape, dtype, device, backward, rounds, names)
                for row in rows_of(shape, dtype, backward, found, limits):
                    rows.append({"shape": name, **vars(shape), **row, "limits": limits})
                    say(
                        f"{name:16s} {row['dtype']:9s} {row['pass']:17s} {row['contender']:24s} {row['ms']:9.2f} {row['ratio']:6.2f} "
                        f"{row['tflops_per_second']:8.3f} {row['least_megabytes']:7.0f} {row['roofline_share']:8.0%}"
                    )
    return rows


CONTENDERS = ("hmoe", "hmoe equal", "hmoe loop", "hmoe eager loop", *OTHERS)


def bench(
    shapes: Sequence[str] | dict[str, Shape] | None, dtypes: Sequence[str], device: str, rounds: int, against: Sequence[str] | None,
    threads: int | None, out: Path, say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Measure, print and write; the result's path.

    Raises:
        ConfigError: for a device, a shape, a dtype or a contender that does not exist here.
    """
    check_device(device)
    for name in against or ():
        if name not in CONTENDERS:
            raise ConfigError(f"--against {name}: must be one of {', '.join(CONTENDERS)}")
        if name in OTHERS and not importlib.util.find_spec(OTHERS[name][0]):
            raise ConfigError(f"--against {name}: {OTHERS[name][0]} is not installed; nearest choice: hmoe loop")
    check_dtypes(dtypes)
    if threads:
        torch.set_num_threads(threads)
    wanted = shapes if isinstance(shapes, dict) else {name: known_shape(name) for name in shapes or ON[device]}
    rows = measure(wanted, dtypes, device, rounds, against or CONTENDERS, say)
    place = "cuda" if device == "cuda" else f"cpu-{torch.get_num_threads()}threads"
    special = [] if not shapes and not against else [*wanted, *(name.replace(" ", "-") for name in against or ())]
    name = "-".join(["layer", place, *dtypes, *special])
    return save(out, name, {"machine": machine(device), "rounds": rounds, "rows": rows})


def check_dtypes(dtypes: Sequence[str]) -> None:
    """Raise ConfigError for one that is not measured."""
    for dtype in dtypes:
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ConfigError(f"--dtype {dtype}: must be bfloat16, float16 or float32")


def own_shape(
    shapes: Sequence[str] | None, dim: int | None, widths: str | None, top_k: int | None, tokens: int | None
) -> Sequence[str] | dict[str, Shape] | None:
    """The shapes by name, or the one that is described.

    Raises:
        ConfigError: for both, half a description, or widths that are no numbers.
    """
    if not (dim or widths or top_k or tokens):
        return shapes
    if shapes or not (dim and widths):
        raise ConfigError(
            "a shape of your own needs --dim and --widths, takes --top-k and --tokens, and excludes --shape"
        )
    try:
        sizes = tuple(int(width) for width in widths.split(","))
    except ValueError:
        raise ConfigError(f"--widths {widths}: must be numbers with commas, as in 864,1056") from None
    return {"own": Shape(dim, sizes, top_k or 2, tokens or 4096)}


def known_shape(name: str) -> Shape:
    """A shape by name."""
    if name not in SHAPES:
        raise ConfigError(f"--shape {name}: must be one of {', '.join(SHAPES)}")
    return SHAPES[name]


def main() -> int:
    """The same without the command line's libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES))
    parser.add_argument("--dim", type=int)
    parser.add_argument("--widths", help="864,1056,...")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", nargs="+", choices=CONTENDERS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    a = parser.parse_args()
    try:
        path = bench(
            own_shape(a.shape, a.dim, a.widths, a.top_k, a.tokens),
            a.dtype,
            a.device,
            a.rounds,
            a.against,
            a.threads,
            a.out,
        )
    except HMoEError as error:
        print(f"hmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
