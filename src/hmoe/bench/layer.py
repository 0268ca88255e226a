"""How fast is hmoe.MoE, beside a dense SwiGLU of the same activated FLOPs (the limit) and beside other people's layers?

A ratio is dense time / layer time at equal activated FLOPs. Routing is fresh at every step: one that repeats hides what
training pays. Other libraries' experts are equal, of the same total width. On a GPU, milliseconds are those of CUDA events
with the launches queued ahead and the L2 cache flushed; the wall time of the same call from an idle GPU shows what Python costs.

    hmoe bench layer, or where only PyTorch is installed: python -m hmoe.bench.layer [--device cuda] [--threads 1]
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import hmoe
from hmoe.bench.contenders import CONTENDERS, Contender, check_contenders, make_contender, refusal
from hmoe.bench.measure import (
    RESULTS,
    Options,
    default_dtype,
    describe_timing,
    interleaved,
    machine,
    median,
    peak_flops,
    place_name,
    read_bandwidth,
    save,
)
from hmoe.bench.profile import profile
from hmoe.bench.shapes import ON, SHAPES, Shape, check_dtypes, known_shape, own_shape
from hmoe.errors import ConfigError, HMoEError
from hmoe.kernels import expert_ffn

LONGEST = 15  # kernels of a profile


def race(
    shape: Shape, dtype: torch.dtype, device: str, backward: bool, rounds: int, names: Sequence[str]
) -> dict[str, Contender]:
    """Seconds and activated units of `dense` and every other contender in every round."""
    racing = {name: make_contender(name, shape, dtype, device) for name in ("dense", *names)}
    grad = torch.randn(shape.tokens, shape.dim, device=device).to(dtype)
    inputs: list[torch.Tensor] = [grad]

    def fresh() -> None:
        inputs[0] = torch.randn(shape.tokens, shape.dim, device=device).to(dtype).requires_grad_(backward)
        for contender in racing.values():
            contender.module.zero_grad()
            if contender.router is not None:
                torch.nn.init.normal_(contender.router, std=shape.dim**-0.5)

    def count() -> None:
        for contender in racing.values():
            contender.done.append(contender.units())

    def run(contender: Contender) -> Callable[[], None]:
        return lambda: _call(contender, inputs[0], grad if backward else None)

    runs = {name: run(contender) for name, contender in racing.items()}
    times = interleaved(runs, rounds, warm=3, device=device, before=fresh, after=count, queued=True)
    for name, contender in racing.items():
        contender.seconds, contender.done = [t.seconds for t in times[name]], contender.done[-rounds:]
        contender.wall_seconds = [t.wall_seconds for t in times[name]] if device == "cuda" else []
    return racing


def _call(contender: Contender, x: torch.Tensor, grad: torch.Tensor | None) -> None:
    """Forward, and backward if there is a gradient."""
    if grad is None:
        with torch.no_grad():
            contender.forward(x)
    else:
        x.grad = None
        torch.autograd.backward(contender.forward(x), grad)


def rows_of(
    shape: Shape, dtype: torch.dtype, backward: bool, found: dict[str, Contender], limits: dict[str, float]
) -> list[dict[str, Any]]:
    """A row per contender: milliseconds (on a GPU also by the clock), ratio, FLOP/s, least bytes, share of the roofline."""
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
            **({"wall_ms": 1e3 * median(contender.wall_seconds)} if contender.wall_seconds else {}),
        })  # fmt: skip
    return rows


def check(shape: Shape, dtype: torch.dtype, device: str, backend: str | None = None) -> None:
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
    for name, computed_by, kind in (
        ("truth", "reference", torch.float64),
        ("plain", "reference", dtype),
        ("ours", backend, dtype),
    ):
        inputs, gate, up, down = (t.detach().to(kind).requires_grad_() for t in (x, moe.w_gate, moe.w_up, moe.w_down))
        gates = routing.gate_N.to(torch.float64 if kind == torch.float64 else torch.float32).requires_grad_()
        y = expert_ffn(inputs, routing.token_N, gates, routing.num_tokens_E, gate, up, down, shape.widths, computed_by)
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


def profile_layer(shape: Shape, dtype: torch.dtype, device: str, name: str) -> dict[str, Any]:
    """Kernels of one forward and backward pass of a contender, after it has warmed up."""
    contender = make_contender(name, shape, dtype, device)
    if contender.router is not None:
        torch.nn.init.normal_(contender.router, std=shape.dim**-0.5)
    x, grad = (torch.randn(shape.tokens, shape.dim, device=device).to(dtype) for _ in range(2))
    x.requires_grad_()
    for _ in range(2):
        _call(contender, x, grad)
    return {"contender": name, "dtype": str(dtype)[6:], **profile(lambda: _call(contender, x, grad), device, LONGEST)}


class Measurement:
    """All that one `hmoe bench layer` measures, said as it comes.

    Attributes:
        rows: a row per shape, dtype, pass and contender.
        profiles: a profile per shape and dtype, where asked for.
        left_out: contenders that cannot run here, and why.
    """

    def __init__(self, against: Sequence[str] | None, profiled: bool, options: Options) -> None:
        self.against, self.profiled, self.options = against, profiled, options
        self.rows: list[dict[str, Any]] = []
        self.profiles: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []

    def measure(self, shapes: Mapping[str, Shape], dtypes: Sequence[str]) -> None:
        """Every shape in every dtype."""
        device = self.options.device
        wall = f" {'wall ms':>9s}" if device == "cuda" else ""
        self.options.say(
            f"{'shape':16s} {'dtype':9s} {'pass':17s} {'contender':24s} {'ms':>9s}{wall} {'ratio':>6s} {'TFLOP/s':>8s} {'MB':>7s} roofline"
        )
        bandwidth = read_bandwidth(device)
        for dtype_name in dtypes:
            dtype = getattr(torch, dtype_name)
            limits = {"flops": peak_flops(dtype, device), "bytes": bandwidth}
            for name, shape in shapes.items():
                self._measure_shape(name, shape, dtype, limits)

    def _measure_shape(self, name: str, shape: Shape, dtype: torch.dtype, limits: dict[str, float]) -> None:
        device = self.options.device
        check(shape, dtype, device)
        names = self._choose(shape, dtype)
        for backward in (True, False):
            racing = race(shape, dtype, device, backward, self.options.rounds, names)
            for row in rows_of(shape, dtype, backward, racing, limits):
                self.rows.append({"shape": name, **vars(shape), **row, "limits": limits})
                wall = f" {row['wall_ms']:9.2f}" if "wall_ms" in row else ""
                self.options.say(
                    f"{name:16s} {row['dtype']:9s} {row['pass']:17s} {row['contender']:24s} {row['ms']:9.2f}{wall} {row['ratio']:6.2f} "
                    f"{row['tflops_per_second']:8.3f} {row['least_megabytes']:7.0f} {row['roofline_share']:8.0%}"
                )
        if self.profiled:
            self.profiles.append({"shape": name, **profile_layer(shape, dtype, device, names[0])})
            self._say_profile(self.profiles[-1])

    def _choose(self, shape: Shape, dtype: torch.dtype) -> list[str]:
        """Who races: those asked for, or all that can run and are right."""
        names = []
        for name in self.against or CONTENDERS:
            reason = refusal(name, shape, dtype, self.options.device)
            if name == "hmoe triton" and reason is None:
                try:
                    check(shape, dtype, self.options.device, "triton")  # `choose` may have taken another
                except HMoEError as error:
                    if self.against:
                        raise
                    reason = str(error)
            if reason is None:
                names.append(name)
            elif (line := {"contender": name, "reason": reason}) not in self.left_out:
                self.left_out.append(line)
                self.options.say(f"left out: {name}: {reason}")
        return names

    def _say_profile(self, profiled: dict[str, Any]) -> None:
        self.options.say(
            f"{profiled['shape']} {profiled['dtype']}: {profiled['contender']}, forward+backward: {profiled['launches']} launches, "
            f"busy {profiled['busy_ms']:.2f} of {profiled['wall_ms']:.2f} ms; the longest kernels:"
        )
        for row in profiled["longest"]:
            self.options.say(f"{row['ms']:9.3f} ms {row['calls']:5d} calls  {row['kernel']}")


def bench(
    shapes: Sequence[str] | dict[str, Shape] | None, dtypes: Sequence[str], against: Sequence[str] | None, profiled: bool,
    options: Options,
) -> Path:  # fmt: skip
    """Measure, print and write; the result's path.

    Raises:
        ConfigError: for a device, a shape, a dtype or a contender that does not exist here.
    """
    device = options.device
    options.prepare()
    if profiled and device != "cuda":
        raise ConfigError("--profile: counts the kernels of a GPU, with --device cuda; nearest choice: leave it out")
    check_dtypes(dtypes)
    wanted = shapes if isinstance(shapes, dict) else {name: known_shape(name) for name in shapes or ON[device]}
    check_contenders(against or (), wanted, dtypes, device)
    measurement = Measurement(against, profiled, options)
    measurement.measure(wanted, dtypes)
    special = [] if not shapes and not against else [*wanted, *(name.replace(" ", "-") for name in against or ())]
    content = {
        "machine": machine(device), "timing": describe_timing(device, queued=True), "rounds": options.rounds,
        "rows": measurement.rows, "left_out": measurement.left_out,
    }  # fmt: skip
    if profiled:
        content["profiles"] = measurement.profiles
    return save(options.out, "-".join(["layer", place_name(device), *dtypes, *special]), content)


def main() -> int:
    """The same without the command line's libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES))
    parser.add_argument("--dim", type=int)
    parser.add_argument("--widths", help="864,1056,...")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--dtype", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", nargs="+", choices=CONTENDERS)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    try:
        wanted = own_shape(a.shape, a.dim, a.widths, a.top_k, a.tokens)
        path = bench(
            wanted,
            a.dtype or [default_dtype(a.device)],
            a.against,
            a.profile,
            Options(a.device, a.rounds, a.threads, a.out),
        )
    except HMoEError as error:
        print(f"hmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
