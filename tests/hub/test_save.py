"""`hmoe.save`: what a loop of one's own leaves is opened by everything."""

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
