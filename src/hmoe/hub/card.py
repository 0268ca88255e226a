"""The model card: what a reader of a folder should know, with the routing facts of the run."""

from pathlib import Path
from typing import Any

from hmoe.config.counts import count_activated_parameters, count_parameters, estimate_activated_width
from hmoe.runs.open_model import OpenedModel
from hmoe.runs.step_metrics import read_step_metrics
from hmoe.specs.routers.base import RouterSpec

_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- mixture-of-experts
- hmoe
---

# {name}
"""
_PADDED = (
    "The experts are padded with zeros to the widest one, so that whatever knows Mixtral computes exactly "
    "the same function."
)
_CAPACITY = (
    "**The result for a text depends on its batch**: experts have a capacity, and which tokens are dropped "
    "or sent on depends on all tokens of the forward pass, other texts included. Compare figures at the same "
    "batch size and length; `generate` switches the capacity off."
)
_READS_AHEAD = (
    "**Experts choose their tokens among all of the forward pass, later ones and other texts included**: "
    "results depend on the batch, losses are not comparable with those of causal models, and the model "
    "cannot generate."
)
_MEASURED = {  # key of metrics.jsonl: what it is
    "step": "training steps",
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "validation_loss": "validation loss, nats per token",
    "validation_bits_per_byte": "validation bits per byte",
    "experts_per_token": "experts per token",
}


def format_model_card(opened: OpenedModel, source: Path, form: str, with_code: bool) -> str:
    """Return the model card of a folder: Markdown with the YAML head that model hubs read.

    Args:
        opened: the model.
        source: its folder, whose metrics are told.
        form: hmoe or mixtral, as exported.
        with_code: whether the folder holds code that loads without hmoe.
    """
    lines = [_HEAD.format(name=opened.name), _describe(opened), "", "| fact | value |", "|---|---|"]
    last = read_step_metrics(source, opened.step)
    lines += [f"| {name} | {value} |" for name, value in _facts(opened, last).items()]
    lines += [
        "",
        *_expert_shares(opened, last),
        "## Use",
        "",
        "```python",
        _usage(form, with_code),
        "```",
        "",
    ]
    if form == "mixtral":
        lines += [_PADDED, ""]
    elif opened.model.config.moe is not None:
        lines += _batch_dependence(opened.model.config.moe.router)
    return "\n".join(lines)


def _describe(opened: OpenedModel) -> str:
    moe = opened.model.config.moe
    if moe is None:
        return "A dense decoder language model, written by hmoe."
    return (
        "A decoder language model whose experts differ in size (HMoE, "
        "[arXiv:2408.10681](https://arxiv.org/abs/2408.10681)), written by hmoe."
    )


def _batch_dependence(router: RouterSpec) -> list[str]:
    """Return what to know of a router whose choice for a token depends on the other tokens of the batch."""
    if not router.causal:
        return [_READS_AHEAD, ""]
    return [_CAPACITY, ""] if router.batch_dependent else []


def _facts(opened: OpenedModel, last: dict[str, Any]) -> dict[str, str]:
    config = opened.model.config
    total = sum(count_parameters(config).values())
    facts = {"parameters": f"{total:,}", "context length, tokens": f"{opened.context_length:,}"}
    if config.moe is not None:
        width = last.get("mean_activated_width") or estimate_activated_width(config)[1]
        measured = (
            "measured in the last training step" if "mean_activated_width" in last else "for a uniform router"
        )
        facts |= {
            "expert widths, hidden units": ", ".join(map(str, config.moe.expert_widths)),
            "router": _describe_router(config.moe.router),
            f"activated hidden units per layer, {measured}": f"{width:,.1f}",
            f"activated parameters, {measured}": f"{round(count_activated_parameters(config, width)):,}",
        }
    return facts | {
        title: _format_number(last[name]) for name, title in _MEASURED.items() if last.get(name) is not None
    }


def _describe_router(router: RouterSpec) -> str:
    return f"{router.title}, {'renormalised gates' if router.renormalize else 'raw gates'}"


def _expert_shares(opened: OpenedModel, last: dict[str, Any]) -> list[str]:
    """Return a table with a row per MoE layer: the share of token-expert pairs that each expert got."""
    table, moe = last.get("expert_token_share"), opened.model.config.moe
    if not table or moe is None:
        return []
    head = " | ".join(map(str, moe.routed_widths))
    rows = [
        f"| {layer} | {' | '.join(f'{share:.3f}' for share in shares)} |"
        for layer, shares in zip(opened.model.config.moe_layers, table, strict=False)
    ]
    return ["Share of token-expert pairs per layer and expert (by width), last training step:", "",
            f"| layer | {head} |", "|---" * (len(moe.routed_widths) + 1) + "|", *rows, ""]  # fmt: skip


def _usage(form: str, with_code: bool) -> str:
    first = "import hmoe.hub  # makes the model type known\n" if form == "hmoe" and not with_code else ""
    trust = ", trust_remote_code=True" if with_code else ""
    return (
        f"{first}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("PATH"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("PATH"{trust})'
    )


def _format_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**12 else f"{value:.4g}"
