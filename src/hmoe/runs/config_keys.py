"""What each key of a family's `config.json` means here.

A key is computed, harmless at certain values only, or without effect on the model.

An absent key has the default of transformers' configuration class of that family; the tests compare this table with
those classes, so that a folder reads the same whether transformers is installed or not.
"""

import difflib
import reprlib
from typing import Any

from hmoe.errors import ConfigError
from hmoe.specs import hugging_face

Raw = dict[str, Any]
DTYPES = ("float64", "float32", "bfloat16", "float16")
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip


def _defaults(*sizes: float | None, **rest: Any) -> Raw:
    return {
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **dict(zip(_SIZES, sizes, strict=True)),
        **rest,
    }


_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096}
DEFAULTS: dict[str, Raw] = {  # family -> what the model is computed from
    "llama": _defaults(
        32000, 4096, 11008, 32, 32, None, 2048, 1e-6, head_dim=None, attention_bias=False, mlp_bias=False,
    ),
    "mistral": _defaults(32000, 4096, 14336, 32, 32, 8, 131072, 1e-6, head_dim=None, sliding_window=4096),
    "qwen3": _defaults(
        151936, 4096, 22016, 32, 32, 32, 32768, 1e-6, head_dim=128, attention_bias=False, **_QWEN_WINDOW,
        max_window_layers=28, layer_types=None,
    ),
    "mixtral": _defaults(
        32000, 4096, 14336, 32, 32, 8, 131072, 1e-5, head_dim=None, sliding_window=None, num_local_experts=8,
        num_experts_per_tok=2, router_aux_loss_coef=0.001,
    ),
    "qwen3_moe": _defaults(
        151936, 2048, 6144, 24, 32, 4, 32768, 1e-6, attention_bias=False, **_QWEN_WINDOW, num_experts=128,
        num_experts_per_tok=8, norm_topk_prob=False, moe_intermediate_size=768, decoder_sparse_step=1,
        mlp_only_layers=None, router_aux_loss_coef=0.001,
    ),
    "olmoe": _defaults(
        50304, 2048, 2048, 16, 16, None, 4096, 1e-5, attention_bias=False, clip_qkv=None, num_experts=64,
        num_experts_per_tok=8, norm_topk_prob=False, router_aux_loss_coef=0.01,
    ),
    "hmoe": hugging_face.DEFAULTS,
}  # fmt: skip
ROPE_THETA = {"mixtral": 1_000_000.0}  # all others 10,000
# The configuration class stores the number of experts under one name; given under the other name too, that one counts.
_OTHER_NAME = {
    "mixtral": {"num_experts": "num_local_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
    "olmoe": {"num_local_experts": "num_experts"},
}
# Read by the model, not by the configuration class: there is no default, and null breaks the model.
_OF_THE_MODEL = {"qwen3_moe": ("head_dim",), "olmoe": ("head_dim",)}
_NULL = {  # keys that may be null, without the families that refuse it
    "num_key_value_heads": ("mixtral", "qwen3_moe", "mistral"), "head_dim": ("qwen3", "qwen3_moe", "olmoe"),
    "sliding_window": (), "layer_types": (), "mlp_only_layers": (), "clip_qkv": (), "qk_norm": (), "expert_widths": (),
    "dense_layers": (), "dense_intermediate_size": (), "router_options": (), "expert_skip": (), "zero_experts": (),
    "hyper_experts": (), "other_loss_coefs": (), "training_rules": (), "bos_token_id": (),
    "eos_token_id": (), "pad_token_id": (),
    "attention_dropout": (), "pretraining_tp": (),
}  # fmt: skip
_KINDS: dict[tuple[type, ...], tuple[str, ...]] = {
    (bool,): ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob"),
    (float,): ("rms_norm_eps",),
    (int, float): (
        "router_aux_loss_coef", "clip_qkv", "router_top_p", "load_balance_coef", "parameter_penalty_coef",
        "router_entropy_coef", "router_z_coef",
    ),
    (str,): ("hidden_act", "qk_norm", "router_type", "penalty_norm", "entropy_scale"),
    (list,): ("layer_types", "mlp_only_layers", "dense_layers", "expert_widths", "expert_skip"),
    (dict,): ("router_options", "zero_experts", "hyper_experts", "other_loss_coefs", "training_rules"),
}  # fmt: skip
_CHECKED = {  # keys without effect on the model whose kind is looked at all the same
    "bos_token_id": (int,), "eos_token_id": (int, list), "pad_token_id": (int,), "initializer_range": (int, float),
    "attention_dropout": (int, float), "use_cache": (bool,), "output_router_logits": (bool,), "pretraining_tp": (int,),
    "router_jitter_noise": (int, float),
}  # fmt: skip
# All others are integers.
_KIND_OF = _CHECKED | {key: kinds for kinds, keys in _KINDS.items() for key in keys}
_MAY_BE_ZERO = ("num_experts", "max_window_layers", "shared_expert_width")
_NAME_OF = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
}

_HARMLESS: dict[str, tuple[Any, ...]] = {  # values of keys that we do not compute at which they change nothing
    "hidden_act": ("silu", "swish"), "attention_bias": (False, None), "mlp_bias": (False, None), "bias": (False, None),
    "clip_qkv": (None,), "logit_scale": (1.0, None), "residual_multiplier": (1.0, None),
    "embedding_multiplier": (1.0, None), "shared_expert_intermediate_size": (0, None),
    "num_shared_experts": (0, None), "n_shared_experts": (0, None), "is_causal": (True,),
    "is_encoder_decoder": (False, None), "add_cross_attention": (False, None), "pruned_heads": ({}, None),
    "quantization_config": (None,), "rope_interleaved": (False, None), "size_balance_coef": (0.0,),
    "width_cost_coef": (0.0,),
}  # fmt: skip
_ROPE = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
_ELSEWHERE = (*_ROPE, "sliding_window", "layer_types")  # checked for every family
_NOT_A_SIZE = (
    "max_position_embeddings", "sliding_window", "max_window_layers", "num_experts_per_tok", "decoder_sparse_step",
)  # fmt: skip
# Metadata, and settings of training and generation.
_WITHOUT_EFFECT = frozenset(
    """
    model_type transformers_version architectures auto_map dtype torch_dtype name_or_path _name_or_path _commit_hash
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
    _experts_implementation _experts_implementation_internal experts_implementation _flash_attn_2_enabled use_flash_attn
    use_cache cache_implementation output_attentions output_hidden_states output_router_logits return_dict
    return_dict_in_generate use_return_dict chunk_size_feed_forward torchscript use_bfloat16 tf_legacy_loss is_decoder
    cross_attention_hidden_size tie_encoder_decoder tie_last_hidden_states gradient_checkpointing pretraining_tp
    initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout classifier_dropout
    router_aux_loss_coef router_jitter_noise use_sliding_window max_window_layers
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix tokenizer_class vocab_file
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams
    num_beam_groups penalty_alpha dola_layers temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff
    diversity_penalty repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids force_words_ids renormalize_logits constraints forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    sequence_bias token_healing guidance_scale watermarking_config num_return_sequences output_scores output_logits
    prompt_lookup_num_tokens max_matching_ngram_size assistant_confidence_threshold num_assistant_tokens
    num_assistant_tokens_schedule assistant_early_exit assistant_lookbehind target_lookbehind low_memory
    max_sequence_length is_llama_config
    unsloth_version unsloth_fixed unsloth_optimized model_name license transformers.js_config neftune_noise_alpha
""".split()  # noqa: SIM905 - readable
)


def read_keys(raw: Raw, family: str) -> Raw:
    """Return every key that the model of this family is computed from, absent ones at their default.

    Raises:
        ConfigError: for a key whose effect is not computed here, or a value of the wrong type, naming it.
    """
    values = DEFAULTS[family] | dict.fromkeys(_OF_THE_MODEL.get(family, ()))
    other = _OTHER_NAME.get(family, {})
    for key, value in raw.items():
        name = other.get(key, key)
        if name in values or name in _CHECKED:
            _check_kind(key, name, value, family)
        elif key not in _HARMLESS and key not in _WITHOUT_EFFECT and key not in _ELSEWHERE:
            _refuse_unknown(key, value, family)
        if key in _HARMLESS:
            _check_harmless(key, value)
    values |= {key: value for key, value in raw.items() if key in values}
    return values | {name: raw[key] for key, name in other.items() if key in raw}


def named_dtype(raw: Raw, where: str) -> str | None:
    """Return the type of the weights that `config.json` asks for; None: as they are stored."""
    for key in ("dtype", "torch_dtype"):
        value = raw.get(key)
        if value is not None:
            if value not in DTYPES:
                raise ConfigError(
                    f"{where}: {key} = {reprlib.repr(value)}, must be one of {', '.join(DTYPES)}"
                )
            return str(value)
    return None


def hint_absent(raw: Raw, family: str) -> str:
    """Return the end of an error's line, naming the sizes that this `config.json` lacks; "" if it has all."""
    names = {ours: key for key, ours in _OTHER_NAME.get(family, {}).items()}
    sizes = [
        key
        for key, size in DEFAULTS[family].items()
        if size and key not in _KIND_OF and key not in _NOT_A_SIZE
    ]
    absent = [key for key in sizes if key not in raw and names.get(key) not in raw]
    return f"; config.json lacks {', '.join(absent)}, taken as transformers' default" if absent else ""


def check_window(raw: Raw, values: Raw, family: str) -> None:
    """Raise ConfigError where attention would look back less far than the context."""
    layers, length = values["num_hidden_layers"], values["max_position_embeddings"]
    window, types = values.get("sliding_window", raw.get("sliding_window")), raw.get("layer_types")
    for key, value in (("sliding_window", window), ("layer_types", types)):
        _check_kind(key, key, value, family)
    kinds = (
        ("full_attention", "sliding_attention")
        if family == "qwen3" and window is not None
        else ("full_attention",)
    )
    if types is not None and (len(types) != layers or any(kind not in kinds for kind in types)):
        raise ConfigError(f"layer_types = {reprlib.repr(types)}, must be {layers} times {' or '.join(kinds)}")
    if "use_sliding_window" in values and not values["use_sliding_window"]:
        window = None
    if family == "qwen3":
        slides = values["max_window_layers"] < layers if types is None else "sliding_attention" in types
        window = window if slides else None
    if window is None or window >= length:
        return
    default = "" if "sliding_window" in raw else f" (config.json lacks it; the default of {family})"
    raise ConfigError(
        f"sliding_window = {window}{default} is not part of our decoder; only null, or at least "
        f"max_position_embeddings = {length}, can be imported; with plain rotary positions the model is "
        f"the same for texts up to the window: set max_position_embeddings to {window}"
    )


def _check_kind(key: str, name: str, value: Any, family: str) -> None:
    kinds = _KIND_OF.get(name, (int,))
    null = name in _NULL and family not in _NULL[name]
    least = (
        0
        if kinds == (int, float) or name in _MAY_BE_ZERO
        else 1
        if kinds == (int,) and name not in _CHECKED
        else None
    )
    if (value is None and null) or (type(value) in kinds and (least is None or least <= value < 2**31)):
        return
    allowed = (
        _NAME_OF[kinds[-1]]
        + ("" if least is None else f" of at least {least}")
        + (" or null" if null else "")
    )
    raise ConfigError(f"{key} = {reprlib.repr(value)}, must be {allowed}")


def _check_harmless(key: str, value: Any) -> None:
    allowed = _HARMLESS[key]
    if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
        raise ConfigError(
            f"{key} = {reprlib.repr(value)} is not part of our decoder; only {allowed[0]!r} can be imported"
        )


def _refuse_unknown(key: str, value: Any, family: str) -> None:
    if value is None:  # the attribute of a configuration class that nobody asks for
        return
    known = [*DEFAULTS[family], *_ROPE]
    nearest = difflib.get_close_matches(key, known, 1, 0.0)[0]
    raise ConfigError(
        f"{reprlib.repr(key)[1:-1]} = {reprlib.repr(value)}: its effect on a {family} model is not known here; "
        f"remove it if it has none; nearest known key is {nearest}"
    )
