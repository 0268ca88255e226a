"""What this machine can do, measured on small trainings: the numbers with which `hmoe plan` simulates others.

Every process trains alone, all at the same time, at a few widths, with experts and with dense layers; a step of a few
tokens tells what a block takes however small it is. Then they train together, and what that adds is measured.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hmoe.bench.disk import measure_disk
from hmoe.bench.link import measure_shared_link
from hmoe.bench.measure import BenchOptions, Run, describe_machine, median_seconds, time_interleaved
from hmoe.bench.step import list_step_parts
from hmoe.bench.training import Training
from hmoe.config import recipes
from hmoe.config.counts import count_parameters
from hmoe.config.hardware import Hardware
from hmoe.config.memory import read_host
from hmoe.config.run import RunConfig
from hmoe.config.step_work import OPTIMIZER_BYTES, count_block_work
from hmoe.model.attention import scaled_dot_product

WIDTHS = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048, 4096)}
_LAYERS, _VOCAB, _LENGTH = 2, 1024, 256
_TOKENS = {"cpu": 2048, "cuda": 16384}
_FEW_TOKENS = 32
_PASSES = 3.0  # a forward and a backward pass


@dataclass(frozen=True)
class _Measured:
    """Seconds of a training's step and of its parts, with what they computed."""

    config: RunConfig
    step: float
    parts: Mapping[str, float]


def measure_machine(options: BenchOptions, path: Path) -> Hardware:
    """Measure, print and write what each process of this machine can do, and return it.

    Args:
        options: device, rounds and so on, and the processes that compute at the same time.
        path: of the YAML file.
    """
    options.prepare()
    device, workers = options.device, options.workers
    rows = [
        _measure(make_training_recipe(width, _TOKENS[device], device, is_sparse), options)
        for width in WIDTHS[device]
        for is_sparse in (True, False)
    ]
    few = _measure(make_training_recipe(WIDTHS[device][0], _FEW_TOKENS, device), options)
    whole = sum(few.parts.values()) - few.parts["scores"]
    block_seconds = max(few.step - whole, 0.0) / _LAYERS
    values = _list_values(rows, block_seconds, device)
    values["processes_per_node"] = workers.size
    values["memory_bytes"] = (
        torch.cuda.mem_get_info()[1] if device == "cuda" else read_host().memory_bytes // workers.size
    )
    values["node"] = {"gather_bytes_per_second": 1e12, "reduce_bytes_per_second": 1e12}  # nobody to talk to
    if workers.size > 1:
        values["node"] = _measure_link(options, values["optimizer_bytes_per_second"])
        values["sharing_seconds"] = values["node"].pop("sharing_seconds", 0.0)
    if workers.size == 1:
        disk = measure_disk(next(folder for folder in path.absolute().parents if folder.is_dir()))
        values |= {"disk_read_bytes_per_second": disk.read, "disk_write_bytes_per_second": disk.write}
    hardware = Hardware.model_validate(values)
    if workers.rank == 0:
        _write(path, hardware, options)
    return hardware


def _measure_link(options: BenchOptions, optimizer_rate: float) -> dict[str, Any]:
    """Return what weights and gradients take between the processes; on a CPU what a step adds to that, too."""
    device, size = options.device, options.workers.size
    if device == "cuda":
        from hmoe.parallel.collectives import measure_link  # noqa: PLC0415 - one process needs no engine

        return measure_link(device, options.rounds)

    def make_recipe(width: int, layers: int) -> RunConfig:
        recipe = make_training_recipe(width, _FEW_TOKENS * size, device)
        tree = recipe.model_dump(mode="json")
        tree["model"]["layers"] = layers
        tree["data"] |= {"micro_batches": size, "sequence_length": _FEW_TOKENS // 2}
        return recipes.check_recipe(tree)

    return measure_shared_link(
        make_recipe, (WIDTHS[device][0], *WIDTHS[device][1:][-2:]), optimizer_rate, options
    )


def make_training_recipe(width: int, tokens: int, device: str, is_sparse: bool = True) -> RunConfig:
    """Return a small training of a width, in the proportions of the paper's models."""
    length = min(_LENGTH, tokens // 2)
    moe = {
        "widths": {"shape": "arithmetic", "total": 16 * width, "experts": 8},
        "router": {"name": "top_k", "k": 2},
        "parameter_penalty": 0.1,
    }
    return recipes.check_recipe(
        {
            "model": {
                "dim": width,
                "layers": _LAYERS,
                "heads": max(1, width // 64),
                "vocab": _VOCAB,
                **({"moe": moe} if is_sparse else {"ffn": 2 * width}),
            },
            "data": {
                "path": "corpus",
                "tokenizer": "bytes",
                "sequence_length": length,
                "batch_tokens": tokens,
                "micro_batches": 1,
            },
            "optim": {"lr": 1e-3},
            "train": {
                "steps": 1,
                "device": device,
                "precision": "bfloat16" if device == "cuda" else "float32",
                "activation_checkpointing": False,
            },
        }
    )


def _measure(config: RunConfig, options: BenchOptions) -> _Measured:
    training = Training(config, options.device)
    # Parts and the whole in turn, so that both meet the same noise.
    runs: dict[str, Run] = {
        "step": training,
        **list_step_parts(training),
        "scores": _make_scores_run(training),
    }
    options.workers.gather_values(None)  # all begin together
    times = time_interleaved(runs, options.rounds, warm=2, device=options.device)
    seconds = {name: median_seconds(timings) for name, timings in times.items()}
    step = seconds.pop("step")
    shown = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    kind = "experts" if config.model.moe else "dense"
    size = f"width {config.model.dim}, {kind}, {config.data.batch_tokens} tokens"
    options.say(f"{size}: step {1e3 * step:.1f} ms, {shown}")
    return _Measured(config, step, seconds)


def _make_scores_run(training: Training) -> Run:
    """Return a run of causal attention alone, forward and backward, for all layers of a step."""
    model, data = training.config.model, training.config.data
    sequences = data.batch_tokens // data.sequence_length
    heads = (sequences, data.sequence_length, model.heads, model.head_width)

    def run() -> None:
        for _ in range(model.layers):
            q, k, v = (
                torch.randn(heads, device=training.device).transpose(1, 2).requires_grad_() for _ in range(3)
            )
            with torch.autocast(
                training.device, torch.bfloat16, enabled=training.config.train.precision == "bfloat16"
            ):
                y = scaled_dot_product(q, k, v, None, True)
            torch.autograd.backward(y, torch.ones_like(y))

    return run


def _list_values(rows: list[_Measured], block_seconds: float, device: str) -> dict[str, Any]:
    tables: dict[str, dict[int, float]] = {
        name: {} for name in ("attention", "scores", "experts", "ffn", "head", "elementwise")
    }
    optimizer = []
    for row in rows:
        model, tokens = row.config.model, row.config.data.batch_tokens
        work = count_block_work(model, row.config.data.sequence_length)
        passes = _PASSES * tokens
        # Parts by themselves are a little slower or faster than in a step: what is left or too much is shared by all.
        whole = sum(row.parts.values()) - row.parts["scores"]  # which are in those of attention
        # A block's own seconds are of another shape: noise in them must leave something, too.
        scale = max(row.step - _LAYERS * block_seconds, 0.1 * row.step) / whole
        parts = {name: scale * seconds for name, seconds in row.parts.items()}
        if model.moe is None:
            tables["ffn"][model.dim] = passes * sum(b.ffn for b in work) / parts["dense feed-forward"]
            continue
        # Of times that are taken apart no more than nine tenths are the scores': noise must not leave nothing.
        scores = min(parts["scores"], 0.9 * parts["attention"])
        tables["scores"][model.dim] = passes * sum(b.scores for b in work) / scores
        projections = parts["attention"] - scores
        tables["attention"][model.dim] = passes * sum(b.attention for b in work) / projections
        tables["experts"][model.dim] = passes * sum(b.experts for b in work) / parts["experts"]
        tables["head"][model.dim] = passes * 2.0 * model.vocab * model.dim / parts["head and loss"]
        moving = parts["norms and residuals"] + parts["router"]
        tables["elementwise"][model.dim] = passes * sum(b.moved_bytes for b in work) / moving
        optimizer.append(OPTIMIZER_BYTES * sum(count_parameters(model).values()) / parts["optimiser"])
    return {
        "device": device,
        "peak_flops": max(tables["experts"].values()),
        "attention_flops": tables["attention"],
        "scores_flops": tables["scores"],
        "experts_flops": tables["experts"],
        "ffn_flops": tables["ffn"],
        "head_flops": tables["head"],
        "elementwise_bytes_per_second": tables["elementwise"],
        "optimizer_bytes_per_second": optimizer[-1],
        "block_seconds": block_seconds,
        "overlap": 1.0 if device == "cuda" else 0.0,  # on a CPU sending takes the cores that compute
    }


def _write(path: Path, hardware: Hardware, options: BenchOptions) -> None:
    machine = ", ".join(f"{name} {value}" for name, value in describe_machine(options.device).items())
    head = (
        f"# Measured by `hmoe bench machine`, {options.workers.size} processes at once, {datetime.date.today()}\n"
        f"# {machine}\n# peak_flops: the fastest of what was measured, no data sheet's\n"
    )
    rounded = yaml.safe_dump(_round(hardware.model_dump(exclude_none=True)), sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + rounded)


def _round(value: Any) -> Any:
    """Return values with four digits, which is more than is known."""
    if isinstance(value, dict):
        return {key: _round(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
