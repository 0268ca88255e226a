"""Folders that transformers writes, of every family, opened by us: the same logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from hmoe import CheckpointError, ConfigError, DataError
from hmoe.data.tokenizer import train_bpe
from hmoe.runs.open_model import open_model

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}

MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4),
    "mixtral-wide-heads": lambda: MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4, head_dim=12),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SIZES, head_dim=12, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=3, intermediate_size=40
    ),
    "qwen3-moe-renormalised-and-dense": lambda: Qwen3MoeConfig(
        **SIZES | {"num_hidden_layers": 3}, head_dim=8, moe_intermediate_size=24, num_experts=6,
        norm_topk_prob=True, num_experts_per_tok=2, intermediate_size=40, mlp_only_layers=[1],
    ),
    "olmoe": lambda: OlmoeConfig(**SIZES, intermediate_size=24, num_experts=6, num_experts_per_tok=3),
    "olmoe-renormalised": lambda: OlmoeConfig(
        **SIZES, intermediate_size=24, num_experts=6, norm_topk_prob=True, num_experts_per_tok=2
    ),
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=48),
    "llama-tied": lambda: LlamaConfig(**SIZES, intermediate_size=48, tie_word_embeddings=True),
    "llama-3": lambda: LlamaConfig(**SIZES, intermediate_size=48, rope_parameters=LLAMA3),
    "llama-yarn": lambda: LlamaConfig(**SIZES, intermediate_size=48, rope_parameters=YARN),
    "mistral": lambda: MistralConfig(**SIZES, intermediate_size=48, sliding_window=None),
    "qwen3": lambda: Qwen3Config(**SIZES, intermediate_size=48, head_dim=16),
}  # fmt: skip


def write(folder: Path, config: PreTrainedConfig, **options: Any) -> torch.nn.Module:
    """A model with random weights, far enough from zero that every one of them matters."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1 if parameter.dim() == 1 else 0))
    model.save_pretrained(folder, **options)
    words = ["one two three four five " * 20]
    (folder / "tokenizer.json").write_bytes(train_bpe(words, 300).content)
    return model


def say(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = write(tmp_path, MODELS[name]())
    opened = open_model(tmp_path, say)
    tokens = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        expected = model(tokens).logits
        found, routings = opened.model(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert opened.context_length == 64
    assert len(routings) == len(opened.model.config.moe_layers)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_shards_and_the_layout_with_stacked_experts(name: str, tmp_path: Path) -> None:
    config = MODELS[name]()
    model = write(tmp_path, config, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    tokens = torch.randint(0, 300, (1, 9))
    with torch.no_grad():
        expected = model(tokens).logits
        torch.testing.assert_close(open_model(tmp_path, say).model(tokens)[0], expected, rtol=1e-4, atol=1e-4)
    stacked = tmp_path / "stacked"
    stacked.mkdir()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    assert any(key.endswith("experts.gate_up_proj") for key in state)
    save_file(state, stacked / "model.safetensors")
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(tmp_path / file, stacked)
    with torch.no_grad():
        torch.testing.assert_close(open_model(stacked, say).model(tokens)[0], expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    write(tmp_path, MODELS["mixtral"]()).to(torch.bfloat16).save_pretrained(tmp_path)
    model = open_model(tmp_path, say).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "must be one of hmoe, mixtral"),
        ({"model_type": ["mixtral"]}, "must be one of hmoe, mixtral"),
        ({"rope_parameters": [1]}, "rope_parameters = .1., must be an object or null"),
        ({"max_position_embeddings": float("inf")}, "max_position_embeddings = inf, must be an integer"),
        ({"max_position_embeddings": -5}, "max_position_embeddings = -5"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not part of our decoder"),
        ({"attention_bias": True}, "attention_bias = True is not part"),
        ({"sliding_window": 16}, "sliding_window = 16 is not part"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
            "one of linear, dynamic, yarn, llama3",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "rope_parameters.mscale"),
        ({"num_attention_heads": 3}, "heads"),
        ({"num_experts_per_tok": 9}, "at most the number of experts, 4"),
        ({"hidden_size": None}, "hidden_size = None, must be an integer"),
        ({"vocab_size": 301}, "embed.weight has shape"),
        ({"num_hidden_layers": 1}, "tensors have no place in the model"),
        ({"num_hidden_layers": 3}, "is missing"),
    ],
)
def test_what_cannot_be_opened_says_why(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path, MODELS["mixtral"]())
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises((ConfigError, CheckpointError), match=said) as caught:
        open_model(tmp_path, say)
    assert "\n" not in str(caught.value)


def test_pickles_outside_files_and_damage_are_refused(tmp_path: Path) -> None:
    write(tmp_path, MODELS["llama"]())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_model(tmp_path, say)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_model(tmp_path, say)
    for names in ({"a": "../model.safetensors"}, {"a": 3}, {"a": "model.bin"}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(CheckpointError, match=r"must be \.safetensors files of its own folder"):
            open_model(tmp_path, say)
    (tmp_path / "model.safetensors.index.json").write_text("[" * 10_000)
    with pytest.raises(CheckpointError, match="damaged"):
        open_model(tmp_path, say)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        open_model(tmp_path, say)


def test_a_folder_without_tokenizer_or_with_a_larger_one(tmp_path: Path) -> None:
    write(tmp_path, MODELS["llama"]())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        open_model(tmp_path, say)
    (tmp_path / "tokenizer.json").write_bytes(
        train_bpe([f"{i} {i * i} word{i}" for i in range(500)], 400).content
    )
    with pytest.raises(DataError, match="the tokenizer has 400 tokens, the model 300"):
        open_model(tmp_path, say)


def test_a_chat_template_is_found_in_both_places(tmp_path: Path) -> None:
    write(tmp_path, MODELS["llama"]())
    assert open_model(tmp_path, say).chat_template is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert open_model(tmp_path, say).chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert open_model(tmp_path, say).chat_template == "new"


def test_code_named_by_a_folder_is_not_run(tmp_path: Path) -> None:
    write(tmp_path, MODELS["llama"]())
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["auto_map"] = {"AutoModelForCausalLM": "modeling.Evil", "AutoConfig": "modeling.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    open_model(tmp_path, say)
    assert not (tmp_path / "ran").exists()
    assert len(load_file(tmp_path / "model.safetensors")) > 0


def test_a_text_begins_with_what_its_tokenizer_puts_before_it(tmp_path: Path) -> None:
    """LLaMA's <s>: known from the folder, kept by an import until training here begins."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    from hmoe.cli.main import run_command_line as hmoe

    write(tmp_path / "hf", MODELS["llama"]())
    file = tmp_path / "hf" / "tokenizer.json"
    assert open_model(tmp_path / "hf", say).begin == ()
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(["<s>"])
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    file.write_bytes(tokenizer.to_str().encode())
    assert open_model(tmp_path / "hf", say).begin == (first,)
    assert hmoe(["import", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    assert open_model(tmp_path / "run", say).begin == (first,)


def test_a_chat_template_is_read_in_every_form(tmp_path: Path) -> None:
    write(tmp_path, MODELS["llama"]())
    forms = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    for form, expected in (("plain", "plain"), (forms, "yes"), (forms[:1], None), (7, None)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": form}))
        said: list[str] = []
        assert open_model(tmp_path, said.append).chat_template == expected
        assert [("none of its chat templates is named default" in line) for line in said] == [True] * (
            form == forms[:1]
        )
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"chat_template\.jinja: cannot be read"):
        open_model(tmp_path, say)


def test_all_tokens_that_end_a_text_are_known(tmp_path: Path) -> None:
    write(tmp_path, MODELS["llama"]())
    separator = open_model(tmp_path, say).tokenizer.separator
    assert open_model(tmp_path, say).tokenizer.ends[0] == separator
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, separator, 9, 5000]}))
    tokenizer = open_model(tmp_path, say).tokenizer
    assert tokenizer.ends == (separator, 7, 9)
    assert tokenizer.decode([40, 7, 41]) == tokenizer.decode([40, 41])
    assert tokenizer.token_bytes(9) == b""
