"""Which tile shapes are fastest on this GPU for a layer? Writes a file that HMOE_TILE_SHAPES may name.

Nothing is measured while a model trains: tile shapes come from a table (`hmoe.kernels.ragged.shapes`), so
that bits do not depend on timing. This measures every shape for every launch of one layer, compares what they
compute, and keeps the fastest.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import hmoe
from hmoe.bench.measure import describe_machine, kernel_milliseconds, save_result
from hmoe.bench.shapes import LayerShape
from hmoe.errors import ConfigError
from hmoe.kernels.layer import Layer, bound_room
from hmoe.kernels.ragged.launch import Launcher, explain_triton_refusal
from hmoe.kernels.ragged.shapes import TABLES, VARIABLE, TileShape, force_shapes, name_size

Timer = Callable[[Callable[[], object]], float]  # a call -> its milliseconds

MORE_SHAPES: dict[str, tuple[TileShape, ...]] = {  # in addition to those of the tables
    "up": (TileShape(128, 128, 64, 8, 3, 1), TileShape(128, 64, 64, 8, 3, 1)),
    "down": (
        TileShape(128, 128, 64, 4, 3, 2),
        TileShape(128, 128, 32, 4, 4, 2),
        TileShape(128, 256, 64, 8, 4, 1),
    ),
    "down_backward": (TileShape(128, 64, 64, 4, 3, 2), TileShape(128, 64, 64, 8, 3, 1)),
    "weights_gate_up": (TileShape(128, 128, 64, 8, 4, 1),),
    "weights_down": (TileShape(128, 256, 64, 8, 3, 1), TileShape(128, 128, 64, 8, 4, 1)),
}
MORE_SHAPES["dx"] = MORE_SHAPES["down"]


class Launch(NamedTuple):
    """One launch of a layer: the call, the tensor that it writes, its FLOPs and its bytes."""

    run: Callable[[], object]
    output: torch.Tensor
    flops: float
    bytes: float


def list_candidate_shapes(launch: str) -> tuple[TileShape, ...]:
    """Return the tile shapes that are measured for a launch, each once."""
    tables = [shape for name in ("hopper", "portable") for shape in TABLES[name][launch].values()]
    return tuple(dict.fromkeys((*tables, *MORE_SHAPES[launch])))


def list_launches(layer: Layer) -> dict[str, Launch]:
    """Return a layer's launches that have tile shapes, in the order of a step; each can be repeated."""
    x, width = layer.x_TD, layer.x_TD.shape[1]
    run = Launcher(layer)
    # Random numbers everywhere: products of zeros take less power and run faster.
    pre_gate, pre_up, act, dgate, dup = (
        torch.randn(bound_room(layer), device=x.device).to(x.dtype) for _ in range(5)
    )
    rows, dy = torch.randn(run.num_pairs, width, device=x.device).to(x.dtype), torch.randn_like(x)
    partial = torch.zeros(-(-max(layer.widths) // 16), run.num_pairs, device=x.device)
    dw = [torch.empty_like(layer.w_gate_FD) for _ in range(2)]
    units = sum(n * h for n, h in zip(layer.num_tokens_E.tolist(), layer.widths, strict=True))
    product, size = 2 * width * units, x.element_size()
    weights, pairs = sum(layer.widths) * width, run.num_pairs * width
    into = (dgate, dup, act, partial, run.num_pairs)
    kept = (layer.token_N, layer.gate_N, run.plan, layer.w_down_FD, pre_gate, pre_up)
    # launch -> tensors, output, products, numbers moved
    calls: dict[str, tuple[tuple[Any, ...], torch.Tensor, int, float]] = {
        "up": ((x, layer.token_N, run.plan, layer.w_gate_FD, layer.w_up_FD, pre_gate, pre_up, act), act, 2,
               pairs + 2 * weights + 3 * units),
        "down": ((act, layer.w_down_FD, act, layer.w_down_FD, run.plan, rows), rows, 1, units + weights + pairs),
        "down_backward": ((dy, *kept, *into), dup, 1, pairs + weights + 5 * units),
        "dx": ((dgate, layer.w_gate_FD, dup, layer.w_up_FD, run.plan, rows), rows, 2, 2 * units + 2 * weights + pairs),
        "weights_gate_up": ((dgate, dup, x, layer.token_N, run.plan, *dw), dw[0], 2, 2 * units + pairs + 2 * weights),
        "weights_down": ((act, act, dy, layer.token_N, run.plan, dw[0], dw[0]), dw[0], 1, units + pairs + weights),
    }  # fmt: skip
    return {
        launch: Launch(
            functools.partial(_call, run, launch, tensors), output, products * product, size * moved
        )
        for launch, (tensors, output, products, moved) in calls.items()
    }


def _call(run: Launcher, launch: str, tensors: tuple[Any, ...]) -> None:
    if launch.startswith("weights"):
        run.begin()  # these kernels count the tiles that were taken, and would find all of them taken
    run(launch, *tensors, **({"KEEP": True} if launch == "up" else {}))


def time_shapes(
    launch: str, call: Launch, shapes: tuple[TileShape, ...], timer: Timer
) -> list[dict[str, Any]]:
    """Time a launch with each tile shape; return a row per shape.

    A row has milliseconds, TFLOP/s and GB/s, or an error: what was raised, or that the result is not the
    first shape's.
    """
    rows: list[dict[str, Any]] = []
    first = None
    for shape in shapes:
        row: dict[str, Any] = {"shape": list(shape)}
        rows.append(row)
        call.output.fill_(1)  # lest what a shape leaves unwritten is what the one before wrote
        try:
            with force_shapes({launch: shape}):
                time = timer(call.run)
        except Exception as error:
            if "CUDA error" in str(error):
                raise  # nothing on this device works from here on
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        result = call.output.double()
        first = result if first is None else first
        if not float((result - first).norm() / first.norm()) < 1e-2:
            row["error"] = f"differs from the first shape; {time:.3f} ms"
            continue
        row |= {
            "ms": time,
            "tflops": call.flops / time / 1e9,
            "gigabytes_per_second": call.bytes / time / 1e6,
        }
    return rows


def bench_tiles(shape: LayerShape, dtype: str, out: Path, say: Callable[[str], None] = print) -> Path:
    """Measure every tile shape of a layer's launches, write the fastest, and return the file's path.

    Raises:
        ConfigError: without a GPU, or where the Triton backend cannot compute the layer.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "bench tiles: PyTorch sees no NVIDIA GPU, and tile shapes can be measured nowhere else"
        )
    if dtype not in ("bfloat16", "float16"):
        raise ConfigError(
            f"dtype = {dtype}: must be bfloat16 or float16; float32 has one tile shape, for checks",
            argument="dtype",
        )
    layer = _draw_layer(shape, getattr(torch, dtype))
    reason = explain_triton_refusal(layer)
    if reason:
        raise ConfigError(f"bench tiles: {reason}")
    tiles: dict[str, dict[str, list[int]]] = {}
    table: dict[str, list[dict[str, Any]]] = {}
    sizes = Launcher(layer).sizes
    timer = functools.partial(kernel_milliseconds, device="cuda")
    for launch, call in list_launches(layer).items():
        table[launch] = rows = time_shapes(launch, call, list_candidate_shapes(launch), timer)
        for line in _format_rows(launch, rows):
            say(line)
        timed = [row for row in rows if "ms" in row]
        if timed:
            tiles[launch] = {name_size(launch, *sizes): min(timed, key=lambda row: row["ms"])["shape"]}
    content = {
        "machine": describe_machine("cuda"),
        **vars(shape),
        "dtype": dtype,
        "tiles": tiles,
        "rows": table,
    }
    path = save_result(
        out, f"tiles-{dtype}-{shape.dim}-{len(shape.widths)}experts-{shape.tokens}tokens", content
    )
    say(f"{VARIABLE}={path} uses the fastest for layers of this size; a run records it")
    return path


def _draw_layer(shape: LayerShape, dtype: torch.dtype) -> Layer:
    moe = hmoe.MoE(shape.dim, shape.widths, hmoe.TopK(shape.k)).to("cuda", dtype)
    x_TD = torch.randn(shape.tokens, shape.dim, device="cuda").to(dtype)
    with torch.no_grad():
        routing = moe.router(x_TD)
    w_gate, w_up, w_down = (w.detach() for w in (moe.w_gate, moe.w_up, moe.w_down))
    pairs = (routing.token_N, routing.gate_N, routing.num_tokens_E)
    return Layer(x_TD, *pairs, w_gate, w_up, w_down, shape.widths)


def _format_rows(launch: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in sorted(rows, key=lambda row: row.get("ms", float("inf"))):
        tile = "x".join(map(str, row["shape"][:3])) + "," + ",".join(map(str, row["shape"][3:]))
        result = (
            row.get("error")
            or f"{row['ms']:9.3f} ms {row['tflops']:6.0f} TFLOP/s {row['gigabytes_per_second']:6.0f} GB/s"
        )
        yield f"{launch:16s} {tile:18s} {result}"
