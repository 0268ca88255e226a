"""`config.json` of the families that our decoder can be: Mixtral, Qwen3-MoE, OLMoE, dense LLaMA, Mistral and Qwen3, and our own."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from hmoe import recipes
from hmoe.architecture import ModelConfig
from hmoe.errors import ConfigError
from hmoe.rope import from_hugging_face

Raw = dict[str, Any]
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values under which a key that we do not compute changes nothing
    "hidden_act": ("silu", "swish", None), "attention_bias": (False, None), "mlp_bias": (False, None), "bias": (False, None),
    "clip_qkv": (None,), "partial_rotary_factor": (1.0, None), "logit_scale": (1.0, None),
    "attention_multiplier": (None,), "residual_multiplier": (1.0, None), "shared_expert_intermediate_size": (None, 0),
    "num_shared_experts": (None, 0), "n_shared_experts": (None, 0), "quantization_config": (None,),
}  # fmt: skip


def model_config(raw: Raw, where: str) -> ModelConfig:
    """What a `config.json` describes, as our model.

    Raises:
        ConfigError: for another family, or a feature that our decoder does not have, naming it.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"{where}: model_type = {family!r}, must be one of {', '.join(FAMILIES)}")
    for key, allowed in _NEUTRAL.items():
        if raw.get(key) not in allowed:
            raise ConfigError(
                f"{where}: {key} = {raw[key]!r} is not part of our decoder; only {allowed[0]!r} can be imported"
            )
    try:
        return ModelConfig.model_validate(_common(raw) | FAMILIES[family](raw))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigError(f"{where}: {recipes.problem_line(problem)}") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{where}: {error}") from None
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None


def _common(raw: Raw) -> Raw:
    """What all families share; `rope_parameters` is transformers 5's, `rope_theta` and `rope_scaling` the older form."""
    window, length = raw.get("sliding_window"), int(raw.get("max_position_embeddings", 2048))
    if window is not None and raw.get("use_sliding_window", True) and window < length:
        raise ConfigError(f"sliding_window = {window} is not part of our decoder; only null can be imported")
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    heads = raw["num_attention_heads"]
    scaling = from_hugging_face(rope, length)
    return {
        "context": length, "dim": raw["hidden_size"], "layers": raw["num_hidden_layers"], "heads": heads, "vocab": raw["vocab_size"],
        "kv_heads": raw.get("num_key_value_heads") or heads, "head_dim": raw.get("head_dim"),
        "tied": raw.get("tie_word_embeddings", False), "norm_eps": raw["rms_norm_eps"], "rope_scaling": scaling,
        "rope_theta": rope.get("rope_theta") or _DEFAULT_THETA.get(raw["model_type"], 10_000.0),
    }  # fmt: skip


_DEFAULT_THETA = {"mixtral": 1_000_000.0}


def _dense(raw: Raw) -> Raw:
    return {"ffn": raw["intermediate_size"]}


def _qwen3(raw: Raw) -> Raw:
    return {"ffn": raw["intermediate_size"], "qk_norm": "head"}


def _equal_experts(raw: Raw, experts: int, width: int, renormalize: bool, coefficient: str) -> Raw:
    router = {"name": "top_k", "k": raw["num_experts_per_tok"], "renormalize": renormalize}
    return {"widths": [width] * experts, "router": router, "load_balance": raw.get(coefficient, 0.0)}


def _experts(raw: Raw) -> int:
    """Transformers writes one name or the other, by version."""
    return int(raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"])


def _mixtral(raw: Raw) -> Raw:
    return {"moe": _equal_experts(raw, _experts(raw), raw["intermediate_size"], True, "router_aux_loss_coef")}


def _olmoe(raw: Raw) -> Raw:
    moe = _equal_experts(
        raw, _experts(raw), raw["intermediate_size"], raw.get("norm_topk_prob", False), "router_aux_loss_coef"
    )
    return {"moe": moe, "qk_norm": "width"}


def _qwen3_moe(raw: Raw) -> Raw:
    only, step = raw.get("mlp_only_layers") or [], raw.get("decoder_sparse_step", 1)
    dense = [i for i in range(raw["num_hidden_layers"]) if i in only or (i + 1) % step]
    if len(dense) == raw["num_hidden_layers"] or not _experts(raw):
        return _qwen3(raw)
    moe = _equal_experts(
        raw, _experts(raw), raw["moe_intermediate_size"], raw.get("norm_topk_prob", False), "router_aux_loss_coef"
    )
    ffn = {"ffn": raw["intermediate_size"]} if dense else {}
    return {"moe": moe | {"dense_layers": dense}, "qk_norm": "head", **ffn}


def _hmoe(raw: Raw) -> Raw:
    own: Raw = {"qk_norm": raw.get("qk_norm"), "ffn": raw.get("dense_intermediate_size")}
    if not raw["expert_widths"]:
        return own
    router = {"name": raw["router_type"], **(raw.get("router_options") or {})}
    named = {"top_k": {"k": "num_experts_per_tok"}, "top_p": {"p": "router_top_p"}}.get(raw["router_type"], {})
    named |= {"renormalize": "norm_topk_prob"} if named else {}
    router |= {ours: raw[theirs] for ours, theirs in named.items()}
    moe = {
        "widths": raw["expert_widths"], "router": router, "shared": raw.get("shared_expert_width", 0),
        "skip": raw.get("expert_skip") or [],
        "zero": raw.get("zero_experts"), "hyper": raw.get("hyper_experts"), "dense_layers": raw.get("dense_layers") or [],
        **{name: raw[f"{name}_coef"] for name in ("load_balance", "parameter_penalty", "router_entropy", "router_z")},
    }  # fmt: skip
    moe |= {"penalty_norm": raw["penalty_norm"]} if raw["parameter_penalty_coef"] else {}
    moe |= {"entropy_scale": raw["entropy_scale"]} if raw["router_entropy_coef"] else {}
    return own | {"moe": moe}


FAMILIES: dict[str, Callable[[Raw], Raw]] = {
    "hmoe": _hmoe,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
    "llama": _dense,
    "mistral": _dense,
    "qwen3": _qwen3,
}
