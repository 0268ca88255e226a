"""A whole training step of unequal experts against equal ones, and where its time goes.

A recipe and its equal and dense siblings, tokens per second, interleaved in one process, medians; then each
part of a step by itself (forward and backward, at the shapes of the step), and what is left. Of several processes each
computes its part of the step, and what is left is what they wait for each other and for what they send.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from hmoe.bench.measure import (
    BenchOptions,
    Run,
    Timing,
    describe_machine,
    describe_timing,
    median_seconds,
    median_wall,
    place_name,
    save_result,
    time_interleaved,
)
from hmoe.bench.peak_memory import compare_memory
from hmoe.bench.training import Training, make_own_part
from hmoe.config import recipes
from hmoe.config.memory import Device, choose_unset, read_host
from hmoe.config.processes import check_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.kernels import expert_ffn
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.moe import MoE
from hmoe.model.rotary import compute_rotary
from hmoe.model.transformer import SEQUENCES, Block
from hmoe.specs.chunk import count_chunk_tokens
from hmoe.units import format_bytes

DENSE = {"0.4b": "dense-0.2b", "3b": "dense-1b"}  # of the paper's sizes


def load_recipe(
    recipe: str, overrides: Sequence[str], precision: str | None, device: str
) -> tuple[str, RunConfig]:
    """Return name and config of a recipe whose step can be measured here.

    Raises:
        ConfigError: for data that is not here, a precision or a device that is not measured.
    """
    name, config = recipes.read_recipe(
        recipe, [*overrides, *([f"train.precision={precision}"] if precision else [])]
    )
    if config.train.precision not in ("float32", "bfloat16"):
        raise ConfigError(f"train.precision = {config.train.precision}: must be float32 or bfloat16 here")
    if precision and any(
        word.removeprefix("--").partition("=")[0] == "train.precision" for word in overrides
    ):
        raise ConfigError(
            f"precision = {precision} and an override of train.precision are both given; leave one out",
            argument="precision",
        )
    if config.train.device not in ("auto", device):
        raise ConfigError(
            f"train.device = {config.train.device}, but device = {device} is what is measured; leave train.device out",
            argument="device",
        )
    if config.data.path != "corpus" and not (Path(config.data.path) / "index.json").is_file():
        raise ConfigError(
            f"{recipe}: its data, {config.data.path}, is not here; add data.path=corpus data.tokenizer=bytes to "
            "measure it on the embedded corpus; nearest choice: quickstart"
        )
    return name, config


def find_siblings(preset: str) -> dict[str, str]:
    """Return the names of the preset's `equal` and `dense` siblings, where it has them."""
    names = {kind: f"{preset}-{kind}" for kind in ("equal", "dense")}
    if preset.startswith("hmoe-"):
        names = {"equal": preset.removeprefix("h"), "dense": DENSE.get(preset.split("-")[1], "")}
    return {kind: name for kind, name in names.items() if name in recipes.list_presets()}


def list_step_parts(training: Training) -> dict[str, Run]:
    """Return each part of a step as a run: forward and backward for all layers and micro-batches."""
    config, model, device = training.config, training.model, training.device
    block, num_calls = cast(Block, model.blocks[0]), config.model.layers * config.data.num_micro_batches
    sequences = config.data.batch_tokens // config.data.sequence_length // config.data.num_micro_batches
    shape = (sequences, config.data.sequence_length, config.model.dim)
    make_run = functools.partial(_make_run, training, shape)
    like, positions = torch.zeros(1, device=device), torch.arange(shape[1], device=device)[None]
    table = compute_rotary(positions, config.model.head_width, config.model.rope_theta, None, like)
    target = torch.randint(config.model.vocab, shape[:2], device=device).flatten()
    chunk = count_chunk_tokens(config.model.vocab, device)
    runs = {
        "attention": make_run(lambda x: block.attention(x, table, SEQUENCES)[0], num_calls),
        "norms and residuals": make_run(lambda x: block.ffn_norm(x + block.attention_norm(x)), num_calls),
        # Once per micro-batch, not per layer.
        "head and loss": make_run(
            lambda x: cross_entropy(x.flatten(0, 1), model.head_weight, target, chunk),
            config.data.num_micro_batches,
        ),
        "optimiser": lambda: _update(training),
    }
    ffn = block.ffn
    if isinstance(ffn, MoE):
        low = _low_precision(training)
        tokens = shape[0] * shape[1]
        # The experts alone are timed on one routing, which no router computes while the clock runs.
        routing = ffn.router(torch.randn(tokens, shape[2], device=device))
        pairs = (routing.token_N, routing.gate_N.detach(), routing.num_tokens_E)

        def experts(x: torch.Tensor) -> torch.Tensor:
            w_gate, w_up, w_down = (w.to(low) for w in (ffn.w_gate, ffn.w_up, ffn.w_down))
            return expert_ffn(x.flatten(0, 1).to(low), *pairs, w_gate, w_up, w_down, ffn.widths)

        runs["router"] = make_run(lambda x: ffn.router(x.flatten(0, 1)).gate_N.sum(), num_calls)
        runs["experts"] = make_run(experts, num_calls)
    else:
        runs["dense feed-forward"] = make_run(ffn, num_calls)
    return runs


def _low_precision(training: Training) -> torch.dtype:
    return torch.bfloat16 if training.config.train.precision == "bfloat16" else torch.float32


def _make_run(
    training: Training,
    shape: tuple[int, int, int],
    function: Callable[[torch.Tensor], torch.Tensor],
    repeats: int,
) -> Run:
    """Return a run of a part of the model, forward and backward, on fresh inputs of that shape."""
    low = _low_precision(training)

    def run() -> None:
        for _ in range(repeats):
            x = torch.randn(shape, device=training.device).requires_grad_()
            with torch.autocast(training.device, torch.bfloat16, enabled=low == torch.bfloat16):
                y = function(x)
            torch.autograd.backward(y, torch.ones_like(y))
        training.model.zero_grad()

    return run


def _update(training: Training) -> None:
    for parameter in training.model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()


def bench_step(
    recipe: str, overrides: Sequence[str], precisions: Sequence[str], alone: bool, options: BenchOptions
) -> Path:
    """Measure a recipe's step and its siblings', print and write the figures, and return the file's path.

    Args:
        recipe: preset or YAML file.
        overrides: of its keys.
        precisions: float32, bfloat16 or both; none for the recipe's own.
        alone: whether the siblings are left out.
        options: device, rounds and so on.

    Raises:
        ConfigError: for what `load_recipe` refuses.
    """
    options.prepare()
    device, rows, workers = options.device, [], options.workers
    others = {} if alone else _comparable(recipe, overrides, options)
    share = _share_memory(device, 1 + len(others), workers.size)
    for precision in precisions or (None,):
        loaded = [load_recipe(each, overrides, precision, device) for each in (recipe, *others.values())]
        name, runs = loaded[0][0], {}
        for each, config in loaded:
            check_processes(config, workers.size)
            runs[each] = Training(choose_unset(config, share, workers.size), device, workers)
        rows += _measure(runs, others.get("equal", name), options)
    content = {
        "machine": describe_machine(device), "timing": describe_timing(device), "rounds": options.rounds, "rows": rows,
        "overrides": list(overrides),
    }  # fmt: skip
    if workers.size > 1:
        content["processes"] = workers.size
        name += f"-{workers.size}-processes"
    if workers.rank > 0:
        return options.out  # the first one writes
    return save_result(options.out, f"step-{name}-{place_name(device).removeprefix('cpu-')}", content)


def _share_memory(device: str, trainings: int, num_processes: int) -> Device:
    """Return the device with the memory that each training may fill: all are in it together.

    Micro-batches that the recipe leaves unset are chosen for that part.
    """
    whole = torch.cuda.mem_get_info()[1] if device == "cuda" else read_host().memory_bytes // num_processes
    return Device(device, whole // trainings)


def _comparable(recipe: str, overrides: Sequence[str], options: BenchOptions) -> dict[str, str]:
    """Return the siblings, or none if overrides change the feed-forward layers.

    In a sibling such overrides would mean something else, or nothing.
    """
    names = find_siblings(recipe)
    plain, changed = (recipes.read_recipe(recipe, words)[1].model for words in ((), overrides))
    if names and (plain.moe, plain.ffn) != (changed.moe, changed.ffn):
        options.say(
            f"alone: an override changes the experts, so {' and '.join(names.values())} would not be comparable"
        )
        return {}
    return names


def _measure(runs: Mapping[str, Training], equal: str, options: BenchOptions) -> list[dict[str, Any]]:
    """Measure one precision; return a row for every training, then one for the parts of the first."""
    preset, first = next(iter(runs.items()))
    device, precision, rows = options.device, first.config.train.precision, []
    times = time_interleaved(dict(runs), options.rounds, warm=3, device=device)
    for name, run in runs.items():
        ratio = median(a.seconds / b.seconds for a, b in zip(times[equal], times[name], strict=True))
        row = _row(name, run, times[name], ratio)
        rows.append(row)
        options.say(
            f"{name:20s} {precision:9s} {row['tokens_per_second']:8.0f} tokens/s  {ratio:.2f} of equal experts"
        )
    if len(runs) == 1:  # what the system and PyTorch count is of all
        memory = compare_memory(first, options.workers)
        rows[0] |= memory
        most, planned, *resident = (format_bytes(value) for value in memory.values() if value is not None)
        also = f", resident {resident[0]}" if resident else ""
        options.say(f"{preset} {precision}: tensors of {most} at most, planned {planned}{also}")
    alone = time_interleaved(
        list_step_parts(make_own_part(first, options.workers)),
        max(options.rounds // 3, 3),
        warm=1,
        device=device,
    )
    seconds = {name: median_seconds(timings) for name, timings in alone.items()}
    whole = median_seconds(times[preset])
    shares = {name: time / whole for name, time in sorted(seconds.items(), key=lambda item: -item[1])}
    shares["what is left"] = 1 - sum(shares.values())
    row = {"preset": preset, "precision": precision, "shares_of_a_step": shares}
    if device == "cuda":
        row["ms"] = {name: 1e3 * time for name, time in seconds.items()}
        row["wall_ms"] = {name: 1e3 * median_wall(timings) for name, timings in alone.items()}
    options.say(
        f"{preset} {precision}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    )
    return [*rows, row]


def _row(name: str, run: Training, timings: Sequence[Timing], ratio: float) -> dict[str, Any]:
    time, config = median_seconds(timings), run.config
    wall = {"ms": 1e3 * time, "wall_ms": 1e3 * median_wall(timings)} if run.device == "cuda" else {}
    return {
        "preset": name, "precision": config.train.precision, "tokens_per_second": config.data.batch_tokens / time,
        "ratio_to_equal": ratio, "gflops_per_second": run.flops / time / 1e9,
        "micro_batches": config.data.num_micro_batches,
        "activation_checkpointing": config.train.recomputes_blocks, **wall,
    }  # fmt: skip
