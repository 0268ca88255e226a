"""`hmoe.save`: what a loop of one's own leaves is opened by everything."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hmoe
from hmoe.config.recipes import read_recipe
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer, build_transformer
from tests.conftest import tiny


def build(name: str = "tiny-topp") -> Transformer:
    return build_transformer(read_recipe(name, tiny(name))[1].model, seed=1)


@pytest.mark.parametrize("name", ["tiny-topp", "tiny-dense"])
def test_a_saved_model_is_opened_with_the_same_weights(name: str, tmp_path: Path) -> None:
    model = build(name).to(torch.bfloat16)
    hmoe.save(model, ByteTokenizer(), tmp_path / "mine", context=32)
    opened, tokenizer = hmoe.open(tmp_path / "mine")
    texts = ["She was", "größe\n"]
    assert tokenizer.encode(texts) == ByteTokenizer().encode(texts)
    assert opened.config.context == 32
    for (key, value), (own_key, own) in zip(
        opened.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert key == own_key
        assert torch.equal(value.cpu(), own), key
    tokens = torch.tensor(tokenizer.encode(["She was"]), device=opened.head_weight.device)
    assert torch.equal(opened(tokens)[0].cpu(), model.eval()(tokens.cpu())[0])


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="context: missing"):
        hmoe.save(build(), ByteTokenizer(), tmp_path / "mine")
    small = build_transformer(read_recipe("tiny", [*tiny("tiny"), "model.vocab=257"])[1].model, seed=1)
    hmoe.save(small, ByteTokenizer(), tmp_path / "mine", context=8)
    with pytest.raises(ConfigError, match="mine: "):
        hmoe.save(small, ByteTokenizer(), tmp_path / "mine", context=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 1}, "model: is of type int, must be a Transformer"),
        ({"tokenizer": "tok.json"}, r"tokenizer: is of type str, must be .* load_tokenizer\(FILE\)"),
        ({"context": 0}, "context = 0: must be a whole number"),
        ({"context": 64.0}, "context = 64.0: must be"),
        ({"folder": ""}, "folder: is empty"),
    ],
)
def test_arguments_of_another_kind_are_one_line(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    arguments = {
        "model": build(),
        "tokenizer": ByteTokenizer(),
        "folder": tmp_path / "x",
        "context": 8,
    } | change
    with pytest.raises(ConfigError, match=message):
        hmoe.save(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_without_transformers_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\nimport hmoe\n"
        "try: hmoe.save\nexcept hmoe.ConfigError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("Hugging Face folders need the hf extra: pip install ")
