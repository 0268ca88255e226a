"""Rotary tables against the library that checkpoints come from, and against the oracle."""

import pytest
import torch

from hmoe import ConfigError
from hmoe.model.rotary import compute_rotary, rotate_heads
from hmoe.specs.rope import RopeScaling
from tests import oracles

CASES = [
    (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    (RopeScaling("dynamic", 4.0, 64), {"rope_type": "dynamic", "factor": 4.0}),
    (
        RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    (
        RopeScaling("yarn", 8.0, 64),
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    ),
    (
        RopeScaling("yarn", 4.0, 128, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
            "truncate": False,
        },
    ),
]


@pytest.mark.parametrize(
    ("scaling", "theirs"), CASES, ids=lambda x: x.kind if isinstance(x, RopeScaling) else ""
)
@pytest.mark.parametrize("length", [10, 64, 200])
def test_tables_are_those_of_transformers(
    scaling: RopeScaling, theirs: dict[str, object], length: int
) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 5000.0, **theirs},
    )
    positions = torch.arange(length)[None]
    like = torch.zeros(1)
    cos, sin = LlamaRotaryEmbedding(config)(like, positions)
    ours = compute_rotary(positions, 32, 5000.0, scaling, like)
    torch.testing.assert_close(ours[0][:, 0], cos[..., :16], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours[1][:, 0], sin[..., :16], rtol=1e-4, atol=2e-5)


def test_rotation_is_the_oracle_at_any_positions() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3], [7, 2, 100, 2]])
    out = rotate_heads(x, compute_rotary(positions, 6, 100.0, None, x))
    for b in range(2):
        for h in range(3):
            for position in range(4):
                expected = oracles.rotary(x[b, h, position], int(positions[b, position]), 100.0)
                torch.testing.assert_close(out[b, h, position], expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "ntk", "factor": 2.0}, "one of linear, dynamic"),
        ({"kind": "linear", "factor": 0.5}, "from 1 to"),
        ({"kind": "linear", "factor": 2.0, "original_length": 4}, "no effect with linear"),
        ({"kind": "yarn", "factor": 2.0}, "needs it"),
        (
            {"kind": "yarn", "factor": 2.0, "original_length": 4, "low_freq_factor": 1.0},
            "no effect with yarn",
        ),
        ({"kind": "llama3", "factor": 2.0, "original_length": 4, "low_freq_factor": -1.0}, "above 0"),
        ({"kind": "llama3", "factor": 2.0, "original_length": 4, "low_freq_factor": 5.0}, "must be below"),
    ],
)
def test_errors_name_the_value(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RopeScaling(**values)  # type: ignore[arg-type]
