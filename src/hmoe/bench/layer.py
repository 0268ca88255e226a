"""How fast is hmoe.MoE, against a dense SwiGLU of the same activated FLOPs (the limit) and others' layers?

A ratio is dense time / layer time at equal activated FLOPs. Routing is fresh at every step: one that repeats
hides what training pays. Other libraries' experts are equal, of the same total width. On a GPU, milliseconds
are those of CUDA events with the launches queued ahead and the L2 cache flushed; the wall time of the same
call from an idle GPU shows what Python costs.

    hmoe bench layer
    python -m hmoe.bench.layer [--device cuda] [--threads 1]       where only PyTorch is installed
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hmoe.bench.contenders import (
    CONTENDERS,
    Contender,
    check_contenders,
    explain_contender_refusal,
    make_contender,
)
from hmoe.bench.correctness import check_layer_results
from hmoe.bench.measure import (
    RESULTS,
    BenchOptions,
    choose_default_dtype,
    describe_machine,
    describe_timing,
    measure_peak_flops,
    measure_read_bandwidth,
    place_name,
    save_result,
    time_interleaved,
)
from hmoe.bench.profile import profile_call
from hmoe.bench.shapes import ON, SHAPES, LayerShape, check_dtypes, get_shape, parse_own_shape
from hmoe.errors import ConfigError, HMoEError

MOST_KERNELS = 15  # the longest ones, of a profile


def race_contenders(
    shape: LayerShape, dtype: torch.dtype, device: str, backward: bool, rounds: int, names: Sequence[str]
) -> dict[str, Contender]:
    """Time `dense` and every other contender in every round, and count the units that each activated."""
    racing = {name: make_contender(name, shape, dtype, device) for name in ("dense", *names)}
    grad = torch.randn(shape.tokens, shape.dim, device=device).to(dtype)
    inputs: list[torch.Tensor] = [grad]

    def draw_inputs() -> None:
        inputs[0] = torch.randn(shape.tokens, shape.dim, device=device).to(dtype).requires_grad_(backward)
        for contender in racing.values():
            contender.module.zero_grad()
            if contender.router is not None:  # another routing in every round, as in training
                torch.nn.init.normal_(contender.router, std=shape.dim**-0.5)

    def count_units() -> None:
        for contender in racing.values():
            contender.activated_units.append(contender.count_units())

    def make_run(contender: Contender) -> Callable[[], None]:
        return lambda: _call(contender, inputs[0], grad if backward else None)

    runs = {name: make_run(contender) for name, contender in racing.items()}
    hooks = {"before": draw_inputs, "after": count_units}
    times = time_interleaved(runs, rounds, warm=3, device=device, **hooks, queued=True)
    for name, contender in racing.items():
        contender.seconds = [t.seconds for t in times[name]]
        contender.activated_units = contender.activated_units[-rounds:]  # without those of the warm-up
        contender.wall_seconds = [t.wall_seconds for t in times[name]] if device == "cuda" else []
    return racing


def _call(contender: Contender, x: torch.Tensor, grad: torch.Tensor | None) -> None:
    """Call a contender forward, and backward if there is a gradient."""
    if grad is None:
        with torch.no_grad():
            contender.forward(x)
    else:
        x.grad = None
        torch.autograd.backward(contender.forward(x), grad)


def tabulate_race(
    shape: LayerShape,
    dtype: torch.dtype,
    backward: bool,
    racing: dict[str, Contender],
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    """Return a row per contender: milliseconds, ratio to dense, FLOP/s, least bytes, share of the roofline.

    Args:
        shape, dtype: of the layer.
        backward: whether the backward pass was timed too, which costs twice the forward pass.
        racing: contenders by name, with their times; `dense` among them.
        limits: the machine's `flops` and `bytes` per second.
    """
    rows = []
    passes, size = 3 if backward else 1, dtype.itemsize
    dense = racing["dense"]
    for name, contender in racing.items():
        dense_rounds = zip(dense.seconds, dense.activated_units, strict=True)
        own_rounds = zip(contender.seconds, contender.activated_units, strict=True)
        # Seconds per activated unit, within each round: noise of the machine hits both.
        ratio = median((ds / du) / (s / u) for (ds, du), (s, u) in zip(dense_rounds, own_rounds, strict=True))
        units = median(contender.activated_units)
        flops = passes * 6 * shape.dim * units
        weights = sum(p.numel() for p in contender.module.parameters()) * size
        tokens = 2 * shape.tokens * shape.dim * size
        # Least traffic: weights and tokens once, in training also pre-activations out and in, gradients out.
        least = weights + tokens + (weights + tokens + 4 * units * size if backward else 0)
        shortest = max(flops / limits["flops"], least / limits["bytes"])
        time = median(contender.seconds)
        rows.append({
            "contender": name, "dtype": str(dtype)[6:], "pass": "forward+backward" if backward else "forward",
            "ms": 1e3 * time, "ratio": ratio, "tflops_per_second": flops / time / 1e12, "least_megabytes": least / 1e6,
            "roofline_share": shortest / time,
            **({"wall_ms": 1e3 * median(contender.wall_seconds)} if contender.wall_seconds else {}),
        })  # fmt: skip
    return rows


def profile_layer(shape: LayerShape, dtype: torch.dtype, device: str, name: str) -> dict[str, Any]:
    """Return the kernels of one forward and backward pass of a contender, after it has warmed up."""
    contender = make_contender(name, shape, dtype, device)
    if contender.router is not None:
        torch.nn.init.normal_(contender.router, std=shape.dim**-0.5)
    x, grad = (torch.randn(shape.tokens, shape.dim, device=device).to(dtype) for _ in range(2))
    x.requires_grad_()
    for _ in range(2):
        _call(contender, x, grad)
    return {
        "contender": name,
        "dtype": str(dtype)[6:],
        **profile_call(lambda: _call(contender, x, grad), device, MOST_KERNELS),
    }


class Measurement:
    """Measures all that one `hmoe bench layer` is asked for, and prints each figure as it comes.

    Attributes:
        rows: a row per shape, dtype, pass and contender.
        profiles: a profile per shape and dtype, where asked for.
        left_out: contenders that cannot run here, and why.
    """

    def __init__(self, against: Sequence[str] | None, profiled: bool, options: BenchOptions) -> None:
        self.against, self.profiled, self.options = against, profiled, options
        self.rows: list[dict[str, Any]] = []
        self.profiles: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []

    def measure(self, shapes: Mapping[str, LayerShape], dtypes: Sequence[str]) -> None:
        """Measure every shape in every dtype."""
        device = self.options.device
        wall = f" {'wall ms':>9s}" if device == "cuda" else ""
        self.options.say(
            f"{'shape':16s} {'dtype':9s} {'pass':17s} {'contender':24s} {'ms':>9s}{wall} {'ratio':>6s} "
            f"{'TFLOP/s':>8s} {'MB':>7s} roofline"
        )
        bandwidth = measure_read_bandwidth(device)
        for dtype_name in dtypes:
            dtype = getattr(torch, dtype_name)
            limits = {"flops": measure_peak_flops(dtype, device), "bytes": bandwidth}
            for name, shape in shapes.items():
                self._measure_shape(name, shape, dtype, limits)

    def _measure_shape(
        self, name: str, shape: LayerShape, dtype: torch.dtype, limits: dict[str, float]
    ) -> None:
        device = self.options.device
        check_layer_results(shape, dtype, device)
        names = self._choose(shape, dtype)
        for backward in (True, False):
            racing = race_contenders(shape, dtype, device, backward, self.options.rounds, names)
            for row in tabulate_race(shape, dtype, backward, racing, limits):
                self.rows.append({"shape": name, **vars(shape), **row, "limits": limits})
                wall = f" {row['wall_ms']:9.2f}" if "wall_ms" in row else ""
                self.options.say(
                    f"{name:16s} {row['dtype']:9s} {row['pass']:17s} {row['contender']:24s} {row['ms']:9.2f}{wall} "
                    f"{row['ratio']:6.2f} {row['tflops_per_second']:8.3f} {row['least_megabytes']:7.0f} "
                    f"{row['roofline_share']:8.0%}"
                )
        if self.profiled:
            self.profiles.append({"shape": name, **profile_layer(shape, dtype, device, names[0])})
            self._print_profile(self.profiles[-1])

    def _choose(self, shape: LayerShape, dtype: torch.dtype) -> list[str]:
        """Return who races: those asked for, or all that can run and are right."""
        names = []
        for name in self.against or CONTENDERS:
            reason = explain_contender_refusal(name, shape, dtype, self.options.device)
            if name == "hmoe triton" and reason is None:
                try:
                    # `choose` may have taken another.
                    check_layer_results(shape, dtype, self.options.device, "triton")
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

    def _print_profile(self, profiled: dict[str, Any]) -> None:
        self.options.say(
            f"{profiled['shape']} {profiled['dtype']}: {profiled['contender']}, forward+backward: "
            f"{profiled['launches']} launches, busy {profiled['busy_ms']:.2f} of {profiled['wall_ms']:.2f} ms; "
            "the longest kernels:"
        )
        for row in profiled["longest"]:
            self.options.say(f"{row['ms']:9.3f} ms {row['calls']:5d} calls  {row['kernel']}")


def bench_layer(
    shapes: Sequence[str] | dict[str, LayerShape] | None,
    dtypes: Sequence[str],
    against: Sequence[str] | None,
    profiled: bool,
    options: BenchOptions,
) -> Path:
    """Measure layers, print and write the figures, and return the file's path.

    Raises:
        ConfigError: for a device, a shape, a dtype or a contender that does not exist here.
    """
    device = options.device
    options.prepare()
    if profiled and device != "cuda":
        raise ConfigError(
            "`profile` counts the kernels of a GPU, with device = cuda; nearest choice: leave it out",
            argument=("profile", "device"),
        )
    check_dtypes(dtypes)
    wanted = shapes if isinstance(shapes, dict) else {name: get_shape(name) for name in shapes or ON[device]}
    check_contenders(against or (), wanted, dtypes, device)
    measurement = Measurement(against, profiled, options)
    measurement.measure(wanted, dtypes)
    # The plain measurement has a plain name; any other says in its name what it measured.
    special = (
        [] if not shapes and not against else [*wanted, *(name.replace(" ", "-") for name in against or ())]
    )
    content = {
        "machine": describe_machine(device), "timing": describe_timing(device, queued=True), "rounds": options.rounds,
        "rows": measurement.rows, "left_out": measurement.left_out,
    }  # fmt: skip
    if profiled:
        content["profiles"] = measurement.profiles
    return save_result(options.out, "-".join(["layer", place_name(device), *dtypes, *special]), content)


def run_layer_module() -> int:
    """Run the benchmark of layers from a command line that needs PyTorch only; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    arguments = parser.parse_args()
    try:
        sizes = (arguments.dim, arguments.widths, arguments.top_k, arguments.tokens)
        wanted = parse_own_shape(arguments.shape, *sizes)
        dtypes = arguments.dtype or [choose_default_dtype(arguments.device)]
        options = BenchOptions(arguments.device, arguments.rounds, arguments.threads, arguments.out)
        path = bench_layer(wanted, dtypes, arguments.against, arguments.profile, options)
    except HMoEError as error:
        print(f"hmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_layer_module())
