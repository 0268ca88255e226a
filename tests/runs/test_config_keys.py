"""Every key of every family's config.json is read as transformers reads it, or refused.

This holds for a key that is deleted, of a wrong kind, moved or doubled.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hmoe import ConfigError
from hmoe.hub import HMoEConfig
from hmoe.model.rotary import compute_rotary
from hmoe.runs.config_keys import DEFAULTS, ROPE_THETA
from hmoe.runs.families import read_family_model
from hmoe.specs.model import ModelSpec
from tests.hub.helpers import config as small_hmoe
from tests.runs.test_families import MODELS

FAMILIES = {
    name.replace("-", "_"): MODELS[name]
    for name in ("mixtral", "qwen3-moe", "olmoe", "llama", "mistral", "qwen3")
}
CLASSES: dict[str, Any] = {family: CONFIG_MAPPING[family] for family in FAMILIES} | {"hmoe": HMoEConfig}
WRONG = (None, "4", 1.5, [1], -1)


def described(family: str) -> dict[str, Any]:
    """config.json as transformers writes it."""
    tree = (small_hmoe() if family == "hmoe" else FAMILIES[family]()).to_dict()
    tree["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    return tree


def read_by_transformers(raw: dict[str, Any]) -> dict[str, Any] | None:
    """What the model is made of, under our names; None where its configuration class refuses."""
    try:
        config = CLASSES[raw["model_type"]].from_dict(dict(raw))
    except Exception:  # strict dataclasses raise many kinds
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    read: dict[str, Any] = {
        "dim": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
        "head_width": head, "num_kv_heads": config.num_key_value_heads, "vocab": config.vocab_size,
        "tied": config.tie_word_embeddings, "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"], "context": config.max_position_embeddings,
    }  # fmt: skip
    if raw["model_type"] in ("mixtral", "olmoe"):
        read |= experts(config, config.intermediate_size, getattr(config, "norm_topk_prob", True))
    elif raw["model_type"] == "qwen3_moe":
        read |= experts(config, config.moe_intermediate_size, config.norm_topk_prob)
    else:
        read["ffn"] = config.intermediate_size
    return read


def experts(config: PreTrainedConfig, width: int, renormalize: bool) -> dict[str, Any]:
    return {
        "widths": (width,) * config.num_local_experts,
        "k": config.num_experts_per_tok,
        "renormalize": renormalize,
    }


def read_here(raw: dict[str, Any]) -> dict[str, Any] | str:
    """The same from our reading, or why it was refused."""
    try:
        model: ModelSpec = read_family_model(raw, "config.json")
    except ConfigError as error:
        assert "\n" not in str(error)
        assert "Error:" not in str(error)
        return str(error)
    names = (
        "dim",
        "layers",
        "heads",
        "head_width",
        "num_kv_heads",
        "vocab",
        "tied",
        "norm_eps",
        "rope_theta",
        "context",
    )
    read = {name: getattr(model, name) for name in names}
    if model.moe is None:
        return read | {"ffn": model.ffn}
    router: Any = model.moe.router
    return read | {"widths": model.moe.expert_widths, "k": router.k, "renormalize": router.renormalize}


def variants(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, config.json with that key deleted, of another kind, or moved)."""
    for key in (*DEFAULTS[raw["model_type"]], "rope_parameters", "eos_token_id"):
        rest = {name: value for name, value in raw.items() if name != key}
        yield key, rest
        yield key, rest | {"text_config": {key: None}}
        for value in WRONG:
            yield key, raw | {key: value}


@pytest.mark.parametrize("family", list(CLASSES))
def test_absent_keys_have_the_defaults_of_transformers(family: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(CLASSES[family])}
    ours = DEFAULTS[family]
    assert {name: fields.get(name, "no such key") for name in ours} == ours
    assert CLASSES[family].default_theta == ROPE_THETA.get(family, 10_000.0)
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    harmless = {
        "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "attention_dropout",
        "pretraining_tp", "output_router_logits", "router_jitter_noise", "rope_parameters",
    }  # fmt: skip
    assert fields.keys() - base - harmless == ours.keys() - ({"hidden_act"} if family == "hmoe" else set())


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_key_deleted_moved_or_of_a_wrong_kind(family: str) -> None:
    raw, differ = described(family), []
    assert read_here(raw) == read_by_transformers(raw)
    for key, changed in variants(raw):
        here, there = read_here(changed), read_by_transformers(changed)
        if isinstance(here, str):
            if key not in here:
                differ.append((key, changed.get(key, "deleted"), here))
        elif here != there:
            differ.append((key, changed.get(key, "deleted"), here, there))
    assert differ == []


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mistral", {"sliding_window": ...}, "sliding_window = 4096"),
        ("llama", {"rope_theta": None, "rope_parameters": None}, "rope_theta = None"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "full_attention"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "high_freq_factor": 4.0}},
         "low_freq_factor: missing"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "factor: missing"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "factor = '4'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"rope_type": "linear"}, "rope_type = 'linear'"),
        ("llama", {"factor": 4.0}, "factor = 4.0"),
        ("llama", {"is_causal": None}, "is_causal = None"),
        ("llama", {"per_layer_config": {"0": {"num_key_value_heads": 1}}}, "per_layer_config"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ("llama", {"hidden_sice": 32}, "nearest known key is hidden_size"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        ("olmoe", {"head_dim": None}, "head_dim = None"),
        ("qwen3",
         {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layer_types": None},
         "sliding_window = 16"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 16}, "sliding_window = 16"),
        ("mixtral", {"sliding_window": 16, "use_sliding_window": False}, "sliding_window = 16"),
        ("mixtral", {"num_local_experts": 10**9}, "num_experts = 1000000000"),
        ("hmoe", {"original_max_position_embeddings": 16}, "original_max_position_embeddings = 16"),
        ("hmoe", {"router_options": {"name": "top_p"}}, "router_options.name"),
        ("hmoe", {"expert_widths": [], "dense_intermediate_size": 9, "shared_expert_width": 4},
         "shared_expert_width has no effect"),
        ("hmoe", {"size_balance_coef": 0.01}, "size_balance_coef = 0.01"),
        ("hmoe", {"width_cost_coef": 0.01}, "width_cost_coef = 0.01"),
        ("hmoe", {"penalty_norm": "median", "parameter_penalty_coef": 0.0}, "penalty_norm = 'median'"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_key(family: str, changes: dict[str, Any], said: str) -> None:
    raw = {key: value for key, value in (described(family) | changes).items() if value is not ...}
    if family == "mistral":
        raw["max_position_embeddings"] = 32768
    here = read_here(raw)
    assert isinstance(here, str)
    assert said in here


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": ...}),  # 4096, more than the context
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2, "layer_types": None},
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2},
        ),
        ("qwen3_moe", {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 1}),
        ("mixtral", {"num_experts": 6}),  # beside num_local_experts, which it replaces
        ("qwen3_moe", {"num_local_experts": 4}),
        ("olmoe", {"num_local_experts": 4, "num_experts": ...}),
        ("llama", {"rope_parameters": None, "rope_theta": 77}),
        ("llama", {"rope_theta": 77.0}),  # beside rope_parameters, which counts
        ("llama", {"rope_scaling": {"rope_type": "default"}, "rope_theta": 77.0}),
        (
            "mixtral",
            {"rope_scaling": {"rope_type": "default"}},
        ),  # the theta inside rope_parameters goes with it
        ("llama", {"temperature": 0.6, "_name_or_path": "x", "mystery": None, "hidden_act": "swish"}),
    ],
)
def test_doubled_and_moved_keys_count_as_in_transformers(family: str, changes: dict[str, Any]) -> None:
    raw = {key: value for key, value in (described(family) | changes).items() if value is not ...}
    assert read_here(raw) == read_by_transformers(raw)


@pytest.mark.parametrize("key", ["size_balance_coef", "width_cost_coef"])
def test_a_loss_that_left_the_keys_is_read_where_it_was_off(key: str) -> None:
    assert read_here(described("hmoe") | {key: 0.0}) == read_here(described("hmoe"))


LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = {
    "rope_type": "dynamic",
    "factor": 2.0,
    "original_max_position_embeddings": 16,
}  # which dynamic does not read


@pytest.mark.parametrize("inside", [{}, {"rope_theta": 77.0}, {"original_max_position_embeddings": 16}])
@pytest.mark.parametrize(
    "kind", [LINEAR, YARN, LLAMA3, DYNAMIC, {"type": "linear", "factor": 3.0}, {"factor": 9.0}], ids=str
)
def test_rotary_settings_count_from_every_place(kind: dict[str, Any], inside: dict[str, Any]) -> None:
    raw = {key: value for key, value in described("llama").items() if key != "rope_parameters"}
    positions = torch.arange(80)[None]
    for place in (
        {"rope_parameters": kind | inside},
        {"rope_scaling": kind | inside, "rope_parameters": LINEAR},
    ):
        for outside in ({}, {"rope_theta": 300.0}, {"original_max_position_embeddings": 32}):
            config = CLASSES["llama"].from_dict(
                {name: value for name, value in (raw | place | outside).items()}
            )
            cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
            model = read_family_model(raw | place | outside, "config.json")
            table = compute_rotary(
                positions, model.head_width, model.rope_theta, model.rope_scaling, torch.zeros(1)
            )
            for found, expected in zip(table, (cos, sin), strict=True):
                torch.testing.assert_close(
                    found[0, 0], expected[0, :, : model.head_width // 2], rtol=1e-4, atol=1e-4
                )
