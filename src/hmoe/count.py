"""Parameters, FLOPs and bytes of a run, from its config alone: no tensor is ever made.

Counted as in the paper (its Table 1 matches only so): input embedding and output head untied and both counted.
"""

import math
from typing import Any

from hmoe.architecture import ModelConfig
from hmoe.config import RunConfig


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Parameters of each part; `experts` is all experts of all layers."""
    d, q_width, kv_width = model.dim, model.heads * model.head_width, model.num_kv_heads * model.head_width
    qk_norms = {None: 0, "head": 2 * model.head_width, "width": q_width + kv_width}[model.qk_norm]
    num_moe, num_dense = len(model.moe_layers), model.layers - len(model.moe_layers)
    widths = model.moe.expert_widths if model.moe else ()
    beside = _beside(model)
    return {
        "embedding": model.vocab * d,
        "head": 0 if model.tied else model.vocab * d,
        "attention": model.layers * 2 * d * (q_width + kv_width),
        "norms": (2 * model.layers + 1) * d + model.layers * qk_norms,
        "router": num_moe * beside["router"],
        "experts": num_moe * 3 * d * sum(widths),
        "ffn": num_dense * 3 * d * (model.ffn or 0),
        "shared": num_moe * beside["shared"],
        "zero": num_moe * beside["zero"],
        "hyper": beside["hyper"],
    }


def _beside(model: ModelConfig) -> dict[str, int]:
    """Parameters of a MoE layer that are not its experts'; those of HyperExperts are all layers' together."""
    moe, d = model.moe, model.dim
    if moe is None:
        return {"router": 0, "shared": 0, "zero": 0, "hyper": 0}
    experts, num_moe = len(moe.routed_widths), len(model.moe_layers)
    balanced = moe.router.name == "top_k" and moe.router.bias_rate > 0
    hyper = moe.hyper.network_parameters(d, num_moe) + num_moe * moe.hyper.layer_parameters(experts) if moe.hyper else 0
    return {
        "router": d * experts + experts * balanced,
        "shared": 3 * d * moe.shared,
        "zero": 3 * d * moe.zero.constant if moe.zero else 0,
        "hyper": hyper,
    }


def fixed_parameters(model: ModelConfig) -> int:
    """Parameters that every token uses: all but the experts; of HyperMoE its HyperExpert, which is generated per selection."""
    parts = parameters_by_part(model)
    generated = 0 if model.moe is None or model.moe.hyper is None else model.moe.hyper.active_parameters(model.dim)
    return sum(parts.values()) - parts["experts"] - parts["hyper"] + len(model.moe_layers) * generated


def activated_parameters(model: ModelConfig, width: float) -> float:
    """Parameters that a token uses when its experts have `width` hidden units in all, mean over MoE layers."""
    return fixed_parameters(model) + len(model.moe_layers) * 3 * model.dim * width


def activated_width(model: ModelConfig) -> tuple[int, float, int]:
    """(least, expected, most) hidden units a token activates per MoE layer; expected is for a uniform router."""
    if model.moe is None:
        return 0, 0.0, 0
    widths = sorted(model.moe.routed_widths)
    fewest, expected, most = model.moe.router.num_experts(len(widths))
    return sum(widths[:fewest]), expected * sum(widths) / len(widths), sum(widths[-most:])


def training_flops(
    model: ModelConfig, context: int, num_tokens: int, num_activated_units: int, num_selections: int = 0
) -> int:
    """Training FLOPs of `num_tokens` tokens, exact: 6 x (activated parameters - input embedding) + causal scores.

    Scores are 6 x layers x context x heads x head width per token; recomputation is not counted. A tied embedding
    is the output head and is counted.

    Args:
        model: the model.
        context: sequence length in tokens.
        num_tokens: tokens trained on.
        num_activated_units: hidden units activated, summed over these tokens and over MoE layers.
        num_selections: HyperExperts that were made, summed over micro-batches and MoE layers; each costs 6 x what its
            hypernetwork multiplies.
    """
    multiplied = fixed_parameters(model) - (0 if model.tied else model.vocab * model.dim)
    scores = model.layers * context * model.heads * model.head_width
    made = num_selections * model.moe.hyper.generation_parameters(model.dim) if model.moe and model.moe.hyper else 0
    return 6 * (num_tokens * (multiplied + scores) + 3 * model.dim * num_activated_units + made)


def flops_per_token(model: ModelConfig, context: int, width: float | None = None) -> float:
    """Training FLOPs of one token whose experts have `width` hidden units in all (None: uniform router)."""
    width = activated_width(model)[1] if width is None else width
    return training_flops(model, context, 1, 0) + 18.0 * model.dim * len(model.moe_layers) * width


def memory_by_part(config: RunConfig) -> dict[str, int]:
    """Bytes of a training step on one device, by part.

    Weights, gradients and both AdamW moments in float32 (float64 doubles them). Activations are an estimate for one
    micro-batch under a uniform router; with activation checkpointing one block's, plus the input of each block.
    """
    model, data = config.model, config.data
    total = sum(parameters_by_part(model).values())
    weight = 8 if config.train.precision == "float64" else 4
    compute = {"float32": 4, "bfloat16": 2, "float64": 8}[config.train.precision]
    tokens = data.batch_tokens // data.micro_batches
    block = round(tokens * (compute * _saved_numbers(model) + weight * 2 * model.dim))
    checkpoint = config.train.activation_checkpointing
    kept = block + model.layers * tokens * model.dim * weight if checkpoint else model.layers * block
    chunk = min(tokens, loss_chunk(model.vocab))
    return {
        "parameters": weight * total,
        "gradients": weight * total,
        "optimizer": 2 * weight * total,
        "activations": kept,
        "loss": 2 * chunk * model.vocab * weight + 2 * tokens * model.dim * weight,
    }


def loss_chunk(vocab: int) -> int:
    """Tokens whose logits exist at one time in the training loss: at least 512, which keeps the GEMMs efficient, else
    about 2**21 numbers, which stay in a CPU's cache (64 MB of float32 with a vocabulary of 32,000)."""
    return max(512, 2**21 // vocab)


def plan(config: RunConfig) -> dict[str, Any]:
    """What `hmoe plan` prints: sizes, FLOPs, tokens of the budget, memory."""
    model, context = config.model, config.data.sequence_length
    least, expected, most = activated_width(model)
    per_token = flops_per_token(model, context) + _hyper_flops_per_token(config)
    activated = activated_parameters(model, expected)
    tokens = _budget_tokens(config, per_token)
    memory = memory_by_part(config)
    return {
        "total_parameters": sum(parameters_by_part(model).values()),
        "activated_parameters": round(activated),
        "activated_parameters_range": [round(activated_parameters(model, width)) for width in (least, most)],
        "activated_assumption": _assumption(model),
        "parameters_by_part": parameters_by_part(model),
        "expert_widths": list(model.moe.expert_widths) if model.moe else [],
        "flops_per_token": round(per_token),
        "flops_per_token_6nd": round(6 * activated),
        "budget_tokens": tokens,
        "budget_steps": None if tokens is None else -(-tokens // config.data.batch_tokens),
        "budget_flops": None if tokens is None else round(tokens * per_token),
        "memory_bytes": sum(memory.values()),
        "memory_by_part_bytes": memory,
    }


def _saved_numbers(model: ModelConfig) -> float:
    """Numbers kept per token and block for the backward pass (kernels keep x and pre-activations only)."""
    width = float(model.ffn or 0)
    if model.moe:
        width = activated_width(model)[1] + model.moe.shared + (model.moe.hyper.dim if model.moe.hyper else 0)
    attention = model.dim + 2 * (model.heads + model.num_kv_heads) * model.head_width
    return 2 * model.dim + attention + 2 * width


def _hyper_flops_per_token(config: RunConfig) -> float:
    """Making HyperExperts for every selection that is possible, or one for each token if those are fewer: at most this."""
    model = config.model
    if model.moe is None or model.moe.hyper is None:
        return 0.0
    fewest, _, most = model.moe.router.num_experts(len(model.moe.routed_widths))
    tokens = config.data.batch_tokens // config.data.micro_batches
    possible = sum(math.comb(len(model.moe.routed_widths), chosen) for chosen in range(fewest, most + 1))
    share = min(possible, tokens) / tokens
    return 6.0 * model.moe.hyper.generation_parameters(model.dim) * len(model.moe_layers) * share


def _budget_tokens(config: RunConfig, per_token: float) -> int | None:
    """Tokens until the first of the recipe's budgets; None if only seconds bound it."""
    train = config.train
    limits = [
        train.steps and train.steps * config.data.batch_tokens,
        train.tokens,
        train.flops and int(train.flops / per_token),
    ]
    return min((limit for limit in limits if limit), default=None)


def _assumption(model: ModelConfig) -> str:
    if model.moe is None:
        return "dense: every parameter"
    if model.moe.router.name == "top_k":
        dropless = model.moe.router.capacity_factor is None
        return f"top-{model.moe.router.k}, every expert equally likely" + (
            "" if dropless else ", nothing dropped or added"
        )
    _, expected, _ = model.moe.router.num_experts(len(model.moe.routed_widths))
    if model.moe.router.name == "expert_choice":
        return f"expert choice, {model.moe.router.capacity_factor:g} experts per token in the mean"
    return f"top-p {model.moe.router.p}, uniform router: {expected} experts; training moves it, see activated_parameters in metrics"
