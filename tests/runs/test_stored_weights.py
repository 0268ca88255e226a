"""What a Hugging Face folder's tensors say beside its config.json is read as transformers reads it.

These are tied heads, types of numbers and sizes.
"""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hmoe import CheckpointError, ConfigError, DataError
from hmoe.runs import weights
from hmoe.runs.hf_folder import read_hf_model, read_json_object
from hmoe.runs.import_hf import import_hf_model
from hmoe.runs.open_model import open_model
from tests.runs.test_families import MODELS, write

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA whose head is another matrix than its embedding."""
    folder = tmp_path_factory.mktemp("llama")
    write(folder, MODELS["llama"]())
    return folder


def change(source: Path, folder: Path, config: dict[str, Any], **tensors: torch.Tensor | None) -> Path:
    """A copy with other keys in its config.json (...: without) and other tensors (None: without)."""
    folder.mkdir()
    shutil.copy(source / "tokenizer.json", folder)
    raw = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in raw.items() if value is not ...})
    )
    state = load_file(source / "model.safetensors") | {
        name.replace("__", "."): value for name, value in tensors.items()
    }
    save_file(
        {name: value for name, value in state.items() if value is not None}, folder / "model.safetensors"
    )
    return folder


@pytest.mark.parametrize("stored", ["another head", "the same head", "only the head", "only the embedding"])
def test_a_tied_flag_with_whatever_is_stored(stored: str, llama: Path, tmp_path: Path) -> None:
    state = load_file(llama / "model.safetensors")
    tensors = {
        "another head": {}, "the same head": {"lm_head__weight": state[EMBEDDING].clone()},
        "only the head": {"model__embed_tokens__weight": None}, "only the embedding": {"lm_head__weight": None},
    }[stored]  # fmt: skip
    folder = change(llama, tmp_path / "hf", {"tie_word_embeddings": True}, **tensors)
    model, expected = (
        read_hf_model(folder, read_json_object(folder / "config.json")),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    assert model.config.tied == (stored != "another head")
    tokens = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], expected(tokens).logits, rtol=1e-4, atol=1e-4)
    config, adopted, _ = import_hf_model(folder, "quickstart", [])
    assert config.model.tied == adopted.config.tied == model.config.tied


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_weights_have_the_type_that_the_folder_names(key: str, llama: Path, tmp_path: Path) -> None:
    folder = change(llama, tmp_path / "hf", {"dtype": ..., key: "bfloat16"})
    model = read_hf_model(folder, read_json_object(folder / "config.json"))
    assert {parameter.dtype for parameter in model.parameters()} == {
        AutoModelForCausalLM.from_pretrained(folder).dtype
    }
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"dtype": "int8"}, {}, "dtype = 'int8', must be one of float64"),
        ({"vocab_size": ...}, {}, "config.json lacks vocab_size"),
        ({"num_hidden_layers": ...}, {}, "config.json lacks num_hidden_layers"),
        ({}, {"model__norm__weight": torch.ones(32, dtype=torch.int8)}, "norm.weight is stored as int8"),
        (
            {},
            {"model__norm__weight": torch.ones(32, dtype=torch.float8_e4m3fn)},
            "stored as float8_e4m3fn, must be one of",
        ),
        ({}, {"model__norm__weight_scale_inv": torch.ones(1)}, "have no place in the model"),
        ({}, {"model__norm__weight": torch.tensor(1.0)}, "norm.weight has shape (), config.json says (32,)"),
        ({"hidden_size": 65536, "num_hidden_layers": 1000}, {}, "parameters, the files hold"),
        ({"vocab_size": 10**7}, {}, "parameters, the files hold"),
    ],
)
def test_what_does_not_fit_is_one_line(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], said: str, llama: Path, tmp_path: Path
) -> None:
    folder = change(llama, tmp_path / "hf", config, **tensors)
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        read_hf_model(folder, read_json_object(folder / "config.json"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["w_gate", "w_up", "w_down"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 6), (4, 0, 8), (0, 6, 8), (2, 6, 8, 1), (4, 1, 8)])
def test_fused_experts_of_another_shape_are_named(part: str, shape: tuple[int, ...]) -> None:
    if part == "w_down" and shape == (4, 1, 8):
        return  # one row is no half of two
    stored = {f"mlp.experts.{name}": torch.zeros(shape) for name in ("gate_up_proj", "down_proj")}
    with pytest.raises(CheckpointError, match=r"mlp\.experts\..*_proj has shape .*, which holds no experts"):
        list(weights._fused(cast(Any, stored), "mlp.experts.", part))


def test_an_import_refuses_a_tokenizer_that_is_larger_than_the_model(llama: Path, tmp_path: Path) -> None:
    folder = change(llama, tmp_path / "hf", {})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["another word"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match="the tokenizer has 5001 tokens, the model"):
        import_hf_model(folder, "tiny", [])
    with pytest.raises(DataError, match="the tokenizer has 5001 tokens, the model"):
        open_model(folder, print)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_file_of_any_size_takes_no_memory(name: str, llama: Path, tmp_path: Path) -> None:
    folder = change(llama, tmp_path / "hf", {})
    with (folder / name).open("wb") as file:
        file.truncate(2**34)  # takes no room on the disk
    with pytest.raises((DataError, ConfigError), match=f"{name}: larger than"):
        open_model(folder, print)


def test_a_key_that_stands_twice_with_two_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1, "b": {"c": 2, "c": 3}}')
    with pytest.raises(ConfigError, match="c stands there twice, as 2 and as 3"):
        read_json_object(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": 1, "a": 1}')
    assert read_json_object(tmp_path / "config.json") == {"a": 1}
