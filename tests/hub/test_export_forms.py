"""Every kind of rotary positions and every option of training is exported in both forms.

Both compute the same function, and read back they are the same model.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from hmoe import ConfigError
from hmoe.hub import HMoEForCausalLM, card
from hmoe.hub.export import ExportOptions, convert_to_mixtral, export_opened_model
from hmoe.model.moe import MoE
from hmoe.model.transformer import Block
from hmoe.runs.open_model import open_model
from tests.hub.helpers import model as hub_model
from tests.hub.test_export import MODELS, opened, recipes_equal, say, tokens

ROPES: dict[str, dict[str, Any]] = {  # with nothing but what each kind needs
    "linear": {"kind": "linear", "factor": 2.0},
    "dynamic": {"kind": "dynamic", "factor": 2.0, "original_length": 16},
    "yarn": {"kind": "yarn", "factor": 4.0, "original_length": 16},
    "llama3": {"kind": "llama3", "factor": 4.0, "original_length": 16},
}


@pytest.mark.parametrize("form", ["hmoe", "mixtral"])
@pytest.mark.parametrize("kind", list(ROPES))
def test_every_kind_of_positions(kind: str, form: str, tmp_path: Path) -> None:
    model, ids = opened(rope_scaling=ROPES[kind]), tokens()
    export_opened_model(model, tmp_path, tmp_path / "out", ExportOptions(form))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    again = open_model(tmp_path / "out", say)
    with torch.no_grad():
        logits = model.model(ids)[0]
        torch.testing.assert_close(loaded(ids).logits, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.model(ids)[0], logits, rtol=1e-5, atol=1e-5)
    assert again.model.config.rope_scaling == model.model.config.rope_scaling
    if form == "hmoe":
        assert recipes_equal(again, model)


def moe(**router: Any) -> dict[str, Any]:
    return {"moe": {"widths": [5, 9, 4], "router": {"name": "top_k", **router}}}


@pytest.mark.parametrize(
    "router",
    [
        {"jitter": 0.1}, {"gumbel": True}, {"k": 1, "straight_through": True},
        {"bias_rate": 0.01, "bias_by": "compute"}, {"groups": 3, "keep_groups": 3},
        {"capacity_factor": 0.5, "eval_capacity_factor": 1.5},
        {"jitter": 0.1, "gumbel": True, "straight_through": True, "bias_rate": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_training_do_not_forbid_a_mixtral(router: dict[str, Any]) -> None:
    model, ids = opened(**moe(**router)), tokens()
    set_bias(model.model.blocks, 0.0)
    weights = convert_to_mixtral(model)
    plain = MixtralForCausalLM(weights.config).eval()
    plain.load_state_dict(weights.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.model(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({"bias_rate": 0.01}, "router.bias_rate: layer 0 chooses by a bias"),
        ({"capacity_factor": 1.5}, None),
        ({"capacity_factor": 1.5, "eval_capacity_factor": 1.0}, "router.capacity_factor"),
        ({"capacity_factor": 1.5, "capacity_by": "width"}, "router.capacity_by"),
        ({"capacity_factor": 1.5, "rectify": "fr"}, "router.capacity_factor"),
        ({"scores": "sigmoid"}, "router.scores"),
        ({"gate_scale": 2.0}, "router.gate_scale"),
        ({"skip": 0.5}, "router.skip"),
    ],
)
def test_what_counts_when_a_model_reads_forbids_it(router: dict[str, Any], said: str | None) -> None:
    model = opened(**moe(**router))
    set_bias(model.model.blocks, 0.1)
    if said is None:
        convert_to_mixtral(model)
        return
    with pytest.raises(ConfigError) as caught:
        convert_to_mixtral(model)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rectified", "depends on its batch"),
        ("experts choose", "later ones and other texts"),
        ("top-k", None),
    ],
)
def test_the_card_says_when_results_depend_on_the_batch(kind: str, said: str | None, tmp_path: Path) -> None:
    text = card.format_model_card(opened(**MODELS[kind]), tmp_path, "hmoe", False)
    assert [words for words in ("depends on its batch", "later ones and other texts") if words in text] == (
        [said] if said else []
    )


def set_bias(blocks: torch.nn.ModuleList, value: float) -> None:
    for block in blocks:
        assert isinstance(block, Block)
        assert isinstance(block.ffn, MoE)
        if block.ffn.router.bias_E is not None:
            torch.nn.init.constant_(block.ffn.router.bias_E, value)


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_weights_lie_aligned(tied: bool, tmp_path: Path) -> None:
    hub_model(tie_word_embeddings=tied, router_options={"bias_rate": 0.1}).save_pretrained(tmp_path)
    loaded, _ = HMoEForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    for model in (loaded, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert [name for name, tensor in model.named_parameters() if tensor.data_ptr() % 64] == []
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
