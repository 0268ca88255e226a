"""`config.json` of the families that our decoder can be.

Mixtral, Qwen3-MoE, OLMoE, dense LLaMA, Mistral and Qwen3, and our own.
"""

from collections.abc import Callable, Sequence

from hmoe.errors import ConfigError
from hmoe.runs.config_keys import ROPE_THETA, Raw, check_window, hint_absent, read_keys
from hmoe.specs import hugging_face
from hmoe.specs.extensions import load_extensions
from hmoe.specs.model import ModelSpec, MoESpec
from hmoe.specs.rope import read_hf_rope
from hmoe.specs.routers.top_k import TopK

_THEIRS = hugging_face.OUR_KEYS | {"ffn": "intermediate_size"}  # ours -> Hugging Face's, for errors

_MOST_EXPERTS, _MOST_LAYERS = 4096, 1024  # of ModelSpec; lists are made before it looks


def read_family_model(raw: Raw, where: str) -> ModelSpec:
    """Return the model of ours that a `config.json` describes, read as transformers reads it.

    Raises:
        ConfigError: for another family, or a feature that our decoder does not have, naming it.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"{where}: model_type = {family!r}, must be one of {', '.join(FAMILIES)}")
    names = hugging_face.OUR_KEYS if family == "hmoe" else _THEIRS
    try:
        load_extensions()  # a folder may have been written with a router or a loss from outside
        values = read_keys(raw, family)
        check_window(raw, values, family)
        return ModelSpec(**_common(raw, values, family), **FAMILIES[family](values))
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {hugging_face.use_their_names(str(error), names)}{hint_absent(raw, family)}"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None


def _common(raw: Raw, values: Raw, family: str) -> Raw:
    """Return what all families share."""
    length, heads = values["max_position_embeddings"], values["num_attention_heads"]
    rope = _rope_parameters(raw, family)
    return {
        "context": length, "dim": values["hidden_size"], "layers": values["num_hidden_layers"],
        "vocab": values["vocab_size"], "heads": heads,
        "kv_heads": heads if values["num_key_value_heads"] is None else values["num_key_value_heads"],
        "head_dim": values["head_dim"], "tied": values["tie_word_embeddings"], "norm_eps": values["rms_norm_eps"],
        "rope_scaling": read_hf_rope(rope, length), "rope_theta": rope["rope_theta"],
    }  # fmt: skip


def _rope_parameters(raw: Raw, family: str) -> Raw:
    """Return the settings of rotary positions from wherever transformers looks, in its order of preference.

    `rope_scaling` (the older form) takes the place of all of `rope_parameters`; what stands inside counts
    before what stands beside it, but for the original length of llama3 and yarn.
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


def _equal_experts(
    values: Raw, experts: int, width: int, renormalize: bool, dense_layers: Sequence[int] = ()
) -> MoESpec:
    if experts > _MOST_EXPERTS:
        raise ConfigError(f"num_experts = {experts}, must be at most {_MOST_EXPERTS}")
    return MoESpec(
        widths=(width,) * experts, router=TopK(values["num_experts_per_tok"], renormalize=renormalize),
        load_balance=values["router_aux_loss_coef"], dense_layers=tuple(dense_layers),
    )  # fmt: skip


def _mixtral(values: Raw) -> Raw:
    return {"moe": _equal_experts(values, values["num_local_experts"], values["intermediate_size"], True)}


def _olmoe(values: Raw) -> Raw:
    moe = _equal_experts(values, values["num_experts"], values["intermediate_size"], values["norm_topk_prob"])
    return {"moe": moe, "qk_norm": "width"}


def _qwen3_moe(values: Raw) -> Raw:
    only, step, layers = (
        values["mlp_only_layers"] or [],
        values["decoder_sparse_step"],
        values["num_hidden_layers"],
    )
    if step < 1:
        raise ConfigError(f"decoder_sparse_step = {step}, must be at least 1")
    dense = [i for i in range(min(layers, _MOST_LAYERS)) if i in only or (i + 1) % step]
    if len(dense) == layers or not values["num_experts"]:
        return _qwen3(values)
    moe = _equal_experts(
        values, values["num_experts"], values["moe_intermediate_size"], values["norm_topk_prob"], dense
    )
    ffn = {"ffn": values["intermediate_size"]} if dense else {}
    return {"moe": moe, "qk_norm": "head", **ffn}


def _hmoe(values: Raw) -> Raw:
    return {
        "qk_norm": values["qk_norm"],
        "ffn": values["dense_intermediate_size"],
        "moe": hugging_face.read_hf_moe(values),
    }


FAMILIES: dict[str, Callable[[Raw], Raw]] = {
    "hmoe": _hmoe,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
    "llama": _dense,
    "mistral": _dense,
    "qwen3": _qwen3,
}
