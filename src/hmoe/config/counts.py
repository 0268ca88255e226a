"""Parameters and FLOPs of a model, from its config alone: no tensor is ever made.

Counted as in the paper (its Table 1 matches only so): input embedding and output head untied and both counted.
"""

from hmoe.specs.model import ModelSpec


def count_parameters(model: ModelSpec) -> dict[str, int]:
    """Return the parameters of each part; `experts` is all experts of all layers."""
    d, q_width, kv_width = model.dim, model.heads * model.head_width, model.num_kv_heads * model.head_width
    qk_norms = {None: 0, "head": 2 * model.head_width, "width": q_width + kv_width}[model.qk_norm]
    num_moe, num_dense = len(model.moe_layers), model.layers - len(model.moe_layers)
    widths = model.moe.expert_widths if model.moe else ()
    extras = _count_extras(model)
    return {
        "embedding": model.vocab * d,
        "head": 0 if model.tied else model.vocab * d,
        "attention": model.layers * 2 * d * (q_width + kv_width),
        "norms": (2 * model.layers + 1) * d + model.layers * qk_norms,
        "router": num_moe * extras["router"],
        "experts": num_moe * 3 * d * sum(widths),
        "ffn": num_dense * 3 * d * (model.ffn or 0),
        "shared": num_moe * extras["shared"],
        "zero": num_moe * extras["zero"],
        "hyper": extras["hyper"],
    }


def _count_extras(model: ModelSpec) -> dict[str, int]:
    """Return the parameters of a MoE layer that are not its experts'.

    Those of HyperExperts are all layers' together.
    """
    moe, d = model.moe, model.dim
    if moe is None:
        return {"router": 0, "shared": 0, "zero": 0, "hyper": 0}
    experts, num_moe = len(moe.routed_widths), len(model.moe_layers)
    balanced = moe.router.bias_update is not None
    hyper = (
        moe.hyper.network_parameters(d, num_moe) + num_moe * moe.hyper.layer_parameters(experts)
        if moe.hyper
        else 0
    )
    return {
        "router": d * experts + experts * balanced,
        "shared": 3 * d * moe.shared,
        "zero": 3 * d * moe.zero.constant if moe.zero else 0,
        "hyper": hyper,
    }


def count_fixed_parameters(model: ModelSpec) -> int:
    """Return the parameters that every token uses: all but the experts.

    HyperMoE's HyperExpert, which is generated per selection, is among them; what generates it is not.
    """
    parts = count_parameters(model)
    generated = (
        0 if model.moe is None or model.moe.hyper is None else model.moe.hyper.active_parameters(model.dim)
    )
    return sum(parts.values()) - parts["experts"] - parts["hyper"] + len(model.moe_layers) * generated


def count_activated_parameters(model: ModelSpec, width: float) -> float:
    """Return the parameters that a token uses when its experts have `width` hidden units in all.

    The width is a mean over MoE layers.
    """
    return count_fixed_parameters(model) + len(model.moe_layers) * 3 * model.dim * width


def estimate_activated_width(model: ModelSpec) -> tuple[int, float, int]:
    """Return (least, expected, most) hidden units that a token activates per MoE layer.

    The expected number is for a uniform router.
    """
    if model.moe is None:
        return 0, 0.0, 0
    widths = sorted(model.moe.routed_widths)
    fewest, expected, most = model.moe.router.count_experts_per_token(len(widths))
    return sum(widths[:fewest]), expected * sum(widths) / len(widths), sum(widths[-most:])


def count_training_flops(
    model: ModelSpec, context: int, num_tokens: int, num_activated_units: int, num_selections: int = 0
) -> int:
    """Return the training FLOPs of `num_tokens` tokens, exactly.

    They are 6 x (activated parameters - input embedding) + causal scores, which are 6 x layers x context x
    heads x head width per token; recomputation is not counted. A tied embedding is the output head and is
    counted.

    Args:
        model: the model.
        context: sequence length in tokens.
        num_tokens: tokens trained on.
        num_activated_units: hidden units activated, summed over these tokens and over MoE layers.
        num_selections: HyperExperts that were made, summed over micro-batches and MoE layers; each costs 6 x what its
            hypernetwork multiplies.
    """
    multiplied = count_fixed_parameters(model) - (0 if model.tied else model.vocab * model.dim)
    scores = model.layers * context * model.heads * model.head_width
    generated = (
        num_selections * model.moe.hyper.generation_parameters(model.dim)
        if model.moe and model.moe.hyper
        else 0
    )
    return 6 * (num_tokens * (multiplied + scores) + 3 * model.dim * num_activated_units + generated)


def measure_activated_width(model: ModelSpec, context: int, num_tokens: int, flops: int) -> float:
    """Return the hidden units that a token activated per MoE layer, from the exact FLOPs of so many tokens.

    The inverse of `count_training_flops` for a model with experts and without HyperExperts, whose making costs too.
    """
    rest = flops - count_training_flops(model, context, num_tokens, 0)
    return rest / (18 * model.dim * len(model.moe_layers) * num_tokens)


def estimate_flops_per_token(model: ModelSpec, context: int, width: float | None = None) -> float:
    """Return the training FLOPs of one token whose experts have `width` hidden units in all.

    Without a width it is what a uniform router activates.
    """
    width = estimate_activated_width(model)[1] if width is None else width
    return count_training_flops(model, context, 1, 0) + 18.0 * model.dim * len(model.moe_layers) * width
