"""`config.json` of the families that our decoder can be: Mixtral, Qwen3-MoE, OLMoE, dense LLaMA, Mistral and Qwen3, and our own."""

import re
from collections.abc import Callable

from pydantic import ValidationError

from hmoe.config import recipes
from hmoe.config.model import ModelConfig
from hmoe.errors import ConfigError
from hmoe.runs.config_keys import ROPE_THETA, Raw, check_window, hint_absent, read_keys
from hmoe.specs import widths as sizes
from hmoe.specs.rope import from_hugging_face

_THEIRS = {  # ours -> Hugging Face's, for errors
    "context": "max_position_embeddings", "dim": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "vocab": "vocab_size", "kv_heads": "num_key_value_heads", "tied": "tie_word_embeddings", "norm_eps": "rms_norm_eps",
    "ffn": "intermediate_size", "router.k": "num_experts_per_tok",
    "rope_scaling.original_length": "rope_parameters.original_max_position_embeddings",
}  # fmt: skip
_OURS = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, _THEIRS))})(?= = |: | / )|(?<= / )heads")

_MOST_EXPERTS, _MOST_LAYERS = 4096, 1024  # of ModelConfig; lists are made before it looks


def model_config(raw: Raw, where: str) -> ModelConfig:
    """What a `config.json` describes, as our model, read as transformers reads it.

    Raises:
        ConfigError: for another family, or a feature that our decoder does not have, naming it.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"{where}: model_type = {family!r}, must be one of {', '.join(FAMILIES)}")
    try:
        values = read_keys(raw, family)
        check_window(raw, values, family)
        return ModelConfig.model_validate(_common(raw, values, family) | FAMILIES[family](values))
    except ValidationError as error:
        line = recipes.problem_line(error.errors(include_url=False)[0])
        raise ConfigError(f"{where}: {_in_their_names(line)}{hint_absent(raw, family)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {_in_their_names(str(error))}{hint_absent(raw, family)}") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None


def _in_their_names(line: str) -> str:
    return _OURS.sub(lambda name: _THEIRS[name[0]], line)


def _common(raw: Raw, values: Raw, family: str) -> Raw:
    """What all families share."""
    length, heads = values["max_position_embeddings"], values["num_attention_heads"]
    rope = _rope_parameters(raw, family)
    return {
        "context": length, "dim": values["hidden_size"], "layers": values["num_hidden_layers"], "vocab": values["vocab_size"],
        "heads": heads, "kv_heads": heads if values["num_key_value_heads"] is None else values["num_key_value_heads"],
        "head_dim": values["head_dim"], "tied": values["tie_word_embeddings"], "norm_eps": values["rms_norm_eps"],
        "rope_scaling": from_hugging_face(rope, length), "rope_theta": rope["rope_theta"],
    }  # fmt: skip


def _rope_parameters(raw: Raw, family: str) -> Raw:
    """The settings of rotary positions from every place where transformers looks, in its order of preference.

    `rope_scaling` (the older form) takes the place of all of `rope_parameters`; what stands inside counts before what stands
    beside it, but for the original length of llama3 and yarn.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(raw.get(name), dict | None):
            raise ConfigError(f"{name} = {raw[name]!r}, must be an object or null")
    rope = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    rope.setdefault("rope_theta", raw.get("rope_theta", ROPE_THETA.get(family, 10_000.0)))
    if type(rope["rope_theta"]) not in (int, float):
        raise ConfigError(f"rope_theta = {rope['rope_theta']!r}, must be a number")
    if raw.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", raw["partial_rotary_factor"])
    kind, original = rope.get("rope_type", rope.get("type")), "original_max_position_embeddings"
    if family == "hmoe" and original in raw:
        raise ConfigError(f"{original} = {raw[original]!r}: stands in rope_parameters, not beside it")
    if kind in ("llama3", "yarn") and original in raw:
        rope[original] = raw[original]
    if kind == "dynamic" and family != "hmoe":
        rope.pop(original, None)  # it counts from max_position_embeddings
    return rope


def _dense(values: Raw) -> Raw:
    return {"ffn": values["intermediate_size"]}


def _qwen3(values: Raw) -> Raw:
    return {"ffn": values["intermediate_size"], "qk_norm": "head"}


def _equal_experts(values: Raw, experts: int, width: int, renormalize: bool) -> Raw:
    if experts > _MOST_EXPERTS:
        raise ConfigError(f"num_experts = {experts}, must be at most {_MOST_EXPERTS}")
    router = {"name": "top_k", "k": values["num_experts_per_tok"], "renormalize": renormalize}
    return {"widths": [width] * experts, "router": router, "load_balance": values["router_aux_loss_coef"]}


def _mixtral(values: Raw) -> Raw:
    return {"moe": _equal_experts(values, values["num_local_experts"], values["intermediate_size"], True)}


def _olmoe(values: Raw) -> Raw:
    moe = _equal_experts(values, values["num_experts"], values["intermediate_size"], values["norm_topk_prob"])
    return {"moe": moe, "qk_norm": "width"}


def _qwen3_moe(values: Raw) -> Raw:
    only, step, layers = values["mlp_only_layers"] or [], values["decoder_sparse_step"], values["num_hidden_layers"]
    if step < 1:
        raise ConfigError(f"decoder_sparse_step = {step}, must be at least 1")
    dense = [i for i in range(min(layers, _MOST_LAYERS)) if i in only or (i + 1) % step]
    if len(dense) == layers or not values["num_experts"]:
        return _qwen3(values)
    moe = _equal_experts(values, values["num_experts"], values["moe_intermediate_size"], values["norm_topk_prob"])
    ffn = {"ffn": values["intermediate_size"]} if dense else {}
    return {"moe": moe | {"dense_layers": dense}, "qk_norm": "head", **ffn}


def _hmoe(values: Raw) -> Raw:
    widths = (
        sizes.arithmetic(16 * values["hidden_size"], 8) if values["expert_widths"] is None else values["expert_widths"]
    )
    own: Raw = {"qk_norm": values["qk_norm"], "ffn": values["dense_intermediate_size"]}
    for name, known in (("penalty_norm", ("mean", "max", "raw")), ("entropy_scale", ("experts", "one"))):
        if values[name] not in known:
            raise ConfigError(f"{name} = {values[name]!r}, must be one of {', '.join(known)}")
    if not widths:
        for name in ("router_options", "expert_skip", "shared_expert_width", "zero_experts", "hyper_experts"):
            if values[name]:
                raise ConfigError(f"{name} has no effect without experts (expert_widths = []); remove it")
        return own
    if "name" in (values["router_options"] or {}):
        raise ConfigError("router_options.name: the router's kind is router_type")
    named = {"top_k": {"k": "num_experts_per_tok"}, "top_p": {"p": "router_top_p"}}.get(values["router_type"], {})
    named |= {"renormalize": "norm_topk_prob"} if named else {}
    router = {ours: values[key] for ours, key in named.items()} | (values["router_options"] or {})
    router["name"] = values["router_type"]
    moe = {
        "widths": widths, "router": router, "shared": values["shared_expert_width"], "skip": values["expert_skip"] or [],
        "zero": values["zero_experts"], "hyper": values["hyper_experts"], "dense_layers": values["dense_layers"] or [],
        **{name: values[f"{name}_coef"] for name in ("load_balance", "parameter_penalty", "router_entropy", "router_z")},
    }  # fmt: skip
    moe |= {"penalty_norm": values["penalty_norm"]} if values["parameter_penalty_coef"] else {}
    moe |= {"entropy_scale": values["entropy_scale"]} if values["router_entropy_coef"] else {}
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
