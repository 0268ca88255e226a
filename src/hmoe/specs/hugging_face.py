"""One map between our specs and the keys of a Hugging Face config.json of family `hmoe`, both ways.

Export, import and `HMoEConfig` use it. A field of a router needs no line here: it goes under `router_options`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hmoe.errors import ConfigError
from hmoe.specs.experts import Hyper, ZeroExperts
from hmoe.specs.fields import check_value, get_field_types
from hmoe.specs.losses import LOSSES, RULES
from hmoe.specs.model import ModelSpec, MoESpec
from hmoe.specs.plain import from_plain, list_options
from hmoe.specs.rope import read_hf_rope, write_hf_rope
from hmoe.specs.routers import ROUTERS, make_router
from hmoe.specs.widths import arithmetic

DECODER_KEYS = {  # field of ModelSpec -> key
    "context": "max_position_embeddings", "dim": "hidden_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "qk_norm": "qk_norm", "vocab": "vocab_size", "ffn": "dense_intermediate_size",
    "tied": "tie_word_embeddings", "norm_eps": "rms_norm_eps",
}  # fmt: skip
MOE_KEYS = {  # field of MoESpec -> key
    "widths": "expert_widths", "shared": "shared_expert_width", "skip": "expert_skip", "zero": "zero_experts",
    "hyper": "hyper_experts", "dense_layers": "dense_layers", "penalty_norm": "penalty_norm",
    "entropy_scale": "entropy_scale", "losses": "other_loss_coefs",
}  # fmt: skip
# Field of a router -> key, for those that Hugging Face has names for; the others go under router_options.
ROUTER_KEYS = {
    "k": "num_experts_per_tok", "p": "router_top_p", "renormalize": "norm_topk_prob",
}  # fmt: skip
OUR_KEYS = {  # field as a complaint names it -> key
    **DECODER_KEYS, **MOE_KEYS, **{f"router.{name}": key for name, key in ROUTER_KEYS.items()},
    "rope_scaling.original_length": "rope_parameters.original_max_position_embeddings",
}  # fmt: skip
_WITHOUT_EXPERTS = (
    "router_options",
    "expert_skip",
    "shared_expert_width",
    "zero_experts",
    "hyper_experts",
    "training_rules",
)
# Of the keys above in a config.json that does not say: the paper's 0.4B model with top-2 routing.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": None, "head_dim": None, "qk_norm": None, "expert_widths": None,
    "dense_layers": None, "dense_intermediate_size": None, "router_type": "top_k", "num_experts_per_tok": 2,
    "router_top_p": 0.6, "norm_topk_prob": True, "router_options": None, "shared_expert_width": 0,
    "expert_skip": None, "zero_experts": None, "hyper_experts": None,
    "penalty_norm": "mean", "entropy_scale": "experts",
    "other_loss_coefs": None, "training_rules": None, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, **{loss.hf_key: loss.hf_default for loss in LOSSES.values()},
}  # fmt: skip


def use_their_names(line: str, names: Mapping[str, str]) -> str:
    """Return a complaint of a spec with the keys of config.json in place of our fields."""
    fields_ = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    line = re.sub(
        rf"(?<![\w.])(?:model\.|moe\.)?({fields_})(?= = |: |, | / )|(?<= / )heads",
        lambda field: names[field[1] or field[0]],
        line,
    )
    return line.removeprefix("model: ").removeprefix("moe: ")


def write_hf_keys(model: ModelSpec, context: int) -> dict[str, Any]:
    """Return the keys of a config.json that say what this model is, made to read `context` tokens at once."""
    keys = {key: getattr(model, name) for name, key in DECODER_KEYS.items()}
    keys |= {
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_width,
        "max_position_embeddings": context,
    }
    keys["rope_parameters"] = write_hf_rope(model.rope_scaling, model.rope_theta)
    if model.moe is None:
        return keys | {"expert_widths": [], "parameter_penalty_coef": 0.0}
    return keys | _write_moe_keys(model.moe)


def _write_moe_keys(moe: MoESpec) -> dict[str, Any]:
    router = moe.router
    keys = {key: getattr(moe, name) for name, key in MOE_KEYS.items()}
    keys |= {
        "expert_widths": list(moe.expert_widths),
        "dense_layers": list(moe.dense_layers),
        "expert_skip": list(moe.skip) or None,
    }
    keys |= {"zero_experts": moe.zero and asdict(moe.zero), "hyper_experts": moe.hyper and asdict(moe.hyper)}
    keys |= {"router_type": router.name, "other_loss_coefs": dict(moe.losses) or None}
    keys |= {key: getattr(router, name) for name, key in _router_keys(router.name).items()}
    options = {
        name: value for name, value in list_options(router).items() if name not in _router_keys(router.name)
    }
    keys["router_options"] = options or None
    keys["training_rules"] = {
        name: value for name, value in list_options(moe).items() if name in RULES
    } or None
    return keys | {loss.hf_key: moe.get_coefficient(loss.name) for loss in LOSSES.values() if loss.built_in}


def read_hf_router(keys: Mapping[str, Any]) -> Any:
    """Return the router that these keys describe.

    Raises:
        ConfigError: for a kind or an option that is not known.
    """
    options = keys["router_options"] or {}
    if "name" in options:
        raise ConfigError("router_options.name: the router's kind is router_type")
    plain = {name: keys[key] for name, key in _router_keys(keys["router_type"]).items()}
    return make_router(keys["router_type"], plain | options)


def read_hf_moe(keys: Mapping[str, Any]) -> MoESpec | None:
    """Return experts, router and losses that these keys describe; None: the model is dense.

    Raises:
        ConfigError: for values that do not fit together.
    """
    widths = keys["expert_widths"]
    if widths is None:
        widths = arithmetic(16 * keys["hidden_size"], 8)
    if not widths:
        for name in _WITHOUT_EXPERTS:
            if keys[name]:
                raise ConfigError(f"{name} has no effect without experts (expert_widths = []); remove it")
        return None
    zero, hyper = keys["zero_experts"], keys["hyper_experts"]
    values = {name: keys[key] for name, key in MOE_KEYS.items()}
    values |= {
        "widths": tuple(widths),
        "dense_layers": tuple(keys["dense_layers"] or ()),
        "skip": tuple(keys["expert_skip"] or ()),
    }
    values |= {"zero": None if zero is None else from_plain(ZeroExperts, zero, "zero_experts")}
    values |= {"hyper": None if hyper is None else from_plain(Hyper, hyper, "hyper_experts")}
    values |= {loss.name: keys[loss.hf_key] for loss in LOSSES.values() if loss.built_in}
    values |= _read_rules(keys)
    values |= {"router": read_hf_router(keys), "losses": keys.get("other_loss_coefs") or {}}
    for (
        loss
    ) in LOSSES.values():  # a variant of a loss that is switched off stands in the file, but not in a spec
        if loss.option is not None and not keys[loss.hf_key]:
            annotation = get_field_types(MoESpec)[loss.option]
            check_value(loss.option, values.pop(loss.option), annotation)
    return MoESpec(**values)


def _read_rules(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of MoESpec that only hmoe's trainer uses; raise ConfigError for one that is not known."""
    rules = dict(keys.get("training_rules") or {})
    for name in rules:
        if name not in RULES:
            raise ConfigError(f"training_rules.{name}: no such rule, must be one of {', '.join(RULES)}")
    return rules


def read_hf_spec(keys: Mapping[str, Any]) -> ModelSpec:
    """Return the model that these keys describe, absent ones at their default.

    Raises:
        ConfigError: for values that do not fit together.
    """
    keys = DEFAULTS | dict(keys)
    values = {name: keys[key] for name, key in DECODER_KEYS.items()}
    rope = keys.get("rope_parameters") or {}
    values |= {
        "rope_theta": rope.get("rope_theta", 10_000.0),
        "rope_scaling": read_hf_rope(rope, keys["max_position_embeddings"]),
    }
    try:
        return ModelSpec(**values, moe=read_hf_moe(keys))
    except ConfigError as error:
        raise ConfigError(use_their_names(str(error), OUR_KEYS)) from None


def _router_keys(kind: str) -> dict[str, str]:
    """Return the fields of this kind of router that have keys of their own, with these keys."""
    names = get_field_types(ROUTERS[kind]) if kind in ROUTERS else {}  # type: ignore[arg-type]
    return {name: key for name, key in ROUTER_KEYS.items() if name in names}
