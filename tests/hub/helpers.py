"""Small models of every kind that the Hugging Face classes can be."""

from typing import Any

import torch

from hmoe.hub import HMoEConfig, HMoEForCausalLM

KINDS: dict[str, dict[str, Any]] = {
    "top_k": {},
    "top_p": {"router_type": "top_p", "router_entropy_coef": 0.03},
    "tied": {"tie_word_embeddings": True},
    "raw gates, QK-norm": {"norm_topk_prob": False, "qk_norm": "head", "head_dim": 12},
    "rectified": {"router_options": {"capacity_factor": 0.5, "rectify": "fr+ir", "when": "fewer"}},
    "bias": {"router_options": {"scores": "sigmoid", "bias_rate": 0.1, "gate_scale": 2.5}},
    "beside": {
        "shared_expert_width": 7,
        "zero_experts": {"null": 1, "constant": 1},
        "hyper_experts": {"dim": 5},
    },
    "dense layer": {"dense_layers": [0], "dense_intermediate_size": 20},
    "dense": {"expert_widths": [], "dense_intermediate_size": 20},
}


def config(**changes: Any) -> HMoEConfig:
    base = {
        "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "expert_widths": [5, 9, 16], "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    return HMoEConfig(**base | changes)


def model(**changes: Any) -> HMoEForCausalLM:
    """Random weights large enough that every one of them matters."""
    built = HMoEForCausalLM(config(**changes)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    built.tie_weights()
    return built


def tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 99, (rows, length))
