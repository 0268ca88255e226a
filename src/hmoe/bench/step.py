"""A whole training step of unequal experts against equal ones, and where its time goes.

A preset and its `-equal` and `-dense` siblings, tokens per second, interleaved in one process, medians; then each part of a
step by itself (forward and backward, at the shapes of the step), and what is left.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from hmoe import recipes
from hmoe.bench.measure import Run, interleaved, machine, median, save
from hmoe.config import RunConfig
from hmoe.count import loss_chunk
from hmoe.data.batches import Batches
from hmoe.data.corpus import open_corpus
from hmoe.errors import ConfigError
from hmoe.kernels import expert_ffn
from hmoe.memory import choose_unset, read_host
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.moe import MoE
from hmoe.model.rotary import rotary
from hmoe.model.transformer import SEQUENCES, Block, build, set_check_finite
from hmoe.train.optim import adamw
from hmoe.train.step import train_step


class Training:
    """A preset in training on the embedded corpus, one step at a time."""

    def __init__(self, name: str, precision: str) -> None:
        self.config = choose_unset(recipes.load(name, [f"train.precision={precision}"])[1], read_host())
        if self.config.data.path != "corpus":
            raise ConfigError(
                f"preset = {name}: the step is measured on presets of the embedded corpus; nearest choice: quickstart"
            )
        index = open_corpus(f"bpe:{self.config.model.vocab}")
        self.batches = Batches(index, self.config.data, 0)
        self.model = build(self.config.model, 0)
        set_check_finite(self.model, False)
        self.optimizer = adamw(self.model, self.config.optim)
        self.number, self.flops = 0, 0

    def __call__(self) -> None:
        """One step."""
        self.flops = train_step(self.model, self.optimizer, self.batches[self.number], self.config, self.number).flops
        self.number += 1


def parts(training: Training) -> dict[str, Run]:
    """Each part of a step alone: forward and backward for all layers and micro-batches."""
    config, model = training.config, training.model
    block, times = cast(Block, model.blocks[0]), config.model.layers * config.data.num_micro_batches
    sequences = config.data.batch_tokens // config.data.sequence_length // config.data.num_micro_batches
    shape = (sequences, config.data.sequence_length, config.model.dim)
    low = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    table = rotary(torch.arange(shape[1])[None], config.model.head_width, config.model.rope_theta, None, torch.zeros(1))

    def backward(
        function: Callable[[torch.Tensor], torch.Tensor], repeats: int, dtype: torch.dtype = torch.float32
    ) -> Run:
        def run() -> None:
            for _ in range(repeats):
                x = torch.randn(shape).to(dtype).requires_grad_()
                with torch.autocast("cpu", torch.bfloat16, enabled=low == torch.bfloat16):
                    y = function(x)
                torch.autograd.backward(y, torch.ones_like(y))
            model.zero_grad()

        return run

    target = torch.randint(config.model.vocab, shape[:2]).flatten()
    chunk = loss_chunk(config.model.vocab, model.embed.weight.device.type)
    found = {
        "attention": backward(lambda x: block.attention(x, table, SEQUENCES)[0], times),
        "norms and residuals": backward(lambda x: block.ffn_norm(x + block.attention_norm(x)), times),
        "head and loss": backward(
            lambda x: cross_entropy(x.flatten(0, 1), model.head_weight, target, chunk), config.data.num_micro_batches
        ),
        "optimiser": lambda: _update(training),
    }
    ffn = block.ffn
    if isinstance(ffn, MoE):
        tokens = shape[0] * shape[1]
        routing = ffn.router(torch.randn(tokens, shape[2]))
        pairs = (routing.token_N, routing.gate_N.detach(), routing.num_tokens_E)

        def experts(x: torch.Tensor) -> torch.Tensor:
            w_gate, w_up, w_down = (w.to(low) for w in (ffn.w_gate, ffn.w_up, ffn.w_down))
            return expert_ffn(x.flatten(0, 1).to(low), *pairs, w_gate, w_up, w_down, ffn.widths)

        found["router"] = backward(lambda x: ffn.router(x.flatten(0, 1)).gate_N.sum(), times)
        found["experts"] = backward(experts, times)
    else:
        found["dense feed-forward"] = backward(ffn, times)
    return found


def _update(training: Training) -> None:
    for parameter in training.model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()


def bench(
    preset: str,
    precisions: Sequence[str],
    rounds: int,
    threads: int | None,
    out: Path,
    say: Callable[[str], None] = print,
) -> Path:
    """Measure, print and write; the result's path."""
    if threads:
        torch.set_num_threads(threads)
    rows = []
    for precision in precisions:
        runs = {name: Training(name, precision) for name in (preset, *siblings(preset))}
        times = interleaved(dict(runs), rounds, warm=3, device="cpu")
        reference = times.get(f"{preset}-equal", times[preset])
        for name, run in runs.items():
            ratio = median(own / theirs for own, theirs in zip(reference, times[name], strict=True))
            row = _row(name, precision, run.config, median(times[name]), run.flops, ratio)
            rows.append(row)
            say(f"{name:20s} {precision:9s} {row['tokens_per_second']:8.0f} tokens/s  {ratio:.2f} of equal experts")
        alone = {name: median(t) for name, t in interleaved(parts(runs[preset]), max(rounds // 3, 3), 1, "cpu").items()}
        whole = median(times[preset])
        shares = {name: time / whole for name, time in sorted(alone.items(), key=lambda item: -item[1])}
        shares["what is left"] = 1 - sum(shares.values())
        rows.append({"preset": preset, "precision": precision, "shares_of_a_step": shares})
        say(f"{preset} {precision}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return save(
        out,
        f"step-{preset}-{torch.get_num_threads()}threads",
        {"machine": machine("cpu"), "rounds": rounds, "rows": rows},
    )


def siblings(preset: str) -> list[str]:
    """The preset's equal and dense siblings, where it has them."""
    return [name for name in (f"{preset}-equal", f"{preset}-dense") if name in recipes.presets()]


def _row(name: str, precision: str, config: RunConfig, time: float, flops: int, ratio: float) -> dict[str, Any]:
    return {
        "preset": name, "precision": precision, "tokens_per_second": config.data.batch_tokens / time,
        "ratio_to_equal": ratio, "gflops_per_second": flops / time / 1e9,
    }  # fmt: skip
