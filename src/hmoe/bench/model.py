"""A whole model, one sequence: reading a prompt and writing tokens, against transformers' Mixtral.

Mixtral has as many experts of the same total width and chooses as many, so total and activated parameters are
equal.
"""

from pathlib import Path
from typing import Any

import torch

from hmoe.bench.measure import (
    BenchOptions,
    Run,
    describe_machine,
    describe_timing,
    median_seconds,
    median_wall,
    place_name,
    save_result,
    time_interleaved,
)
from hmoe.config import recipes
from hmoe.config.counts import count_activated_parameters, count_parameters, estimate_activated_width
from hmoe.errors import ConfigError
from hmoe.model.generate import Sampling, generate_tokens
from hmoe.model.transformer import build_transformer, set_check_finite
from hmoe.specs.model import ModelSpec

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")  # transformers' ways to compute experts


class _Vocabulary:
    """A vocabulary in which every token is text, so that nothing ends early."""

    ends: tuple[int, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


def _runs(config: ModelSpec, dtype: torch.dtype, prompt: list[int], new: int, device: str) -> dict[str, Run]:
    """Return the runs by name: reading the prompt, or writing `new` tokens after its first 16."""
    model = build_transformer(config, 0).to(device, dtype).eval().requires_grad_(False)
    set_check_finite(model, False)
    begin, words = prompt[:16], _Vocabulary(config.vocab)

    def read() -> None:
        x_BLD, _ = model.hidden(torch.tensor([prompt], device=device), model.new_cache(1, len(prompt)))
        _ = x_BLD[0, -1] @ model.head_weight.T  # logits of the last token only, as Mixtral's below

    runs: dict[str, Run] = {
        "hmoe read": torch.inference_mode()(read),
        "hmoe write": lambda: list(generate_tokens(model, begin, new, Sampling(0), 0, words)),
    }
    mixtral = _mixtral(config, dtype).to(device)
    ids, first = torch.tensor([prompt], device=device), torch.tensor([begin], device=device)
    options = {
        "attention_mask": torch.ones_like(first),
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
    }

    def mixtral_read(name: str) -> None:
        mixtral.set_experts_implementation(name)
        with torch.inference_mode():
            mixtral(ids, use_cache=True, logits_to_keep=1)

    def mixtral_write(name: str) -> None:
        mixtral.set_experts_implementation(name)
        mixtral.generate(first, **options)

    for name in IMPLEMENTATIONS:
        # This one copies an expert's weights for every token: a hundred times as slow in reading.
        if name != "batched_mm":
            runs[f"transformers {name} read"] = lambda name=name: mixtral_read(name)  # type: ignore[misc]
        runs[f"transformers {name} write"] = lambda name=name: mixtral_write(name)  # type: ignore[misc]
    return runs


def _mixtral(config: ModelSpec, dtype: torch.dtype) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM  # noqa: PLC0415 - optional

    moe = config.moe
    _, _, most = (0, 0, 0) if moe is None else moe.router.count_experts_per_token(len(moe.expert_widths))
    if moe is None or moe.router.describe_mixtral_fault(len(moe.expert_widths)) or moe.dense_layers:
        raise ConfigError(
            "bench model: needs a preset with top-k experts in every layer, such as hmoe-0.4b-topk"
        )
    experts = len(moe.expert_widths)
    shape = MixtralConfig(
        vocab_size=config.vocab, hidden_size=config.dim, intermediate_size=sum(moe.expert_widths) // experts,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.num_kv_heads,
        num_local_experts=experts, num_experts_per_tok=most, sliding_window=None,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return MixtralForCausalLM._from_config(shape, dtype=dtype).eval().requires_grad_(False)


def bench_model(preset: str, dtype: str, prompt: int, new: int, options: BenchOptions) -> Path:
    """Measure a preset and its Mixtral, print and write the figures, and return the file's path."""
    options.prepare()
    device, config = options.device, recipes.read_recipe(preset)[1].model
    generator = torch.Generator("cpu").manual_seed(0)  # the same prompt on every device
    tokens = torch.randint(config.vocab, (prompt,), generator=generator, device="cpu").tolist()
    runs = _runs(config, getattr(torch, dtype), tokens, new, device)
    times = time_interleaved(runs, options.rounds, warm=1, device=device)
    num_tokens = {name: prompt if name.endswith("read") else new for name in times}
    rate = {name: num_tokens[name] / median_seconds(timings) for name, timings in times.items()}
    ratio = {}
    for part in ("read", "write"):
        fastest = max(
            value for name, value in rate.items() if name.startswith("transformers") and name.endswith(part)
        )
        ratio[part] = rate[f"hmoe {part}"] / fastest
    for name, value in rate.items():
        options.say(f"{name:32s} {value:10.1f} tokens/s")
    options.say(
        f"hmoe is {ratio['read']:.2f} times as fast in reading, {ratio['write']:.2f} in writing, as transformers' best"
    )
    width = estimate_activated_width(config)[1]
    content = {
        "machine": describe_machine(device), "timing": describe_timing(device), "preset": preset, "dtype": dtype,
        "prompt_tokens": prompt, "new_tokens": new, "parameters": sum(count_parameters(config).values()),
        "activated_parameters": round(count_activated_parameters(config, width)),
        "tokens_per_second": rate, "ratio_to_best_of_transformers": ratio,
        "seconds": {name: [t.seconds for t in timings] for name, timings in times.items()},
    }  # fmt: skip
    if device == "cuda":
        content["ms"] = {name: 1e3 * median_seconds(timings) for name, timings in times.items()}
        content["wall_ms"] = {name: 1e3 * median_wall(timings) for name, timings in times.items()}
    return save_result(
        options.out, f"model-{preset}-{dtype}-{place_name(device).removeprefix('cpu-')}", content
    )
