import pytest
import torch

import hmoe
from hmoe.analyze.show import list_layer_lines, list_token_values
from hmoe.data.tokenizer import ByteTokenizer, train_bpe
from tests.analyze.helpers import build_small_model

TEXT = "She said: café ☕ — \U0001f600!"


def test_tokens_are_those_of_the_trace() -> None:
    model = build_small_model()
    shown = hmoe.show(model, ByteTokenizer(), TEXT)
    ids = list(TEXT.encode())
    expected = hmoe.trace(model, [256, *ids])  # after a separator, as in evaluation
    assert [token.token for token in shown.tokens] == ids
    for token in shown.tokens:
        place = token.index + 1
        assert token.nll == pytest.approx(float(expected.nll_T[place]))
        assert token.activated_ratio == pytest.approx(float(expected.width_ZT[:, place].mean()) / 25)
        pairs = expected.token_N == place
        assert [(e.layer, e.expert) for e in token.experts] == list(
            zip(expected.layer_N[pairs].tolist(), expected.expert_N[pairs].tolist(), strict=True)
        )
        assert [e.gate for e in token.experts] == pytest.approx(expected.gate_N[pairs].tolist())
        assert all(e.width == model.config.moe.expert_widths[e.expert] for e in token.experts)  # type: ignore[union-attr]
        for e in token.experts:
            assert e.probability == pytest.approx(float(expected.probs_ZTE[e.layer, place, e.expert]))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), train_bpe([TEXT], 280)], ids=["bytes", "bpe"])
def test_pieces_join_to_the_text(tokenizer) -> None:  # type: ignore[no-untyped-def]
    shown = hmoe.show(build_small_model(tokenizer.vocab_size), tokenizer, TEXT)
    assert "".join(piece.text for piece in shown.pieces) == TEXT
    assert "\ufffd" not in "".join(piece.text for piece in shown.pieces)
    assert len(shown.pieces) <= len(shown.tokens)


def test_a_notebook_sees_colours_and_print_a_table() -> None:
    shown = hmoe.show(build_small_model(), ByteTokenizer(), "a<b>\n")
    html = shown._repr_html_()
    assert "<b>" not in html
    assert "&lt;" in html
    assert str(shown) == repr(shown)
    assert len(str(shown).splitlines()) == 6
    assert str(shown).splitlines()[-1].endswith(r"'\n'")


def test_options_are_those_of_a_trace() -> None:
    model = build_small_model()
    for options in ({"top_p_experts": 0.99}, {"without": [1, 3]}):
        shown = hmoe.show(model, ByteTokenizer(), "abc", **options)
        expected = hmoe.trace(model, [256, *b"abc"], **options)  # type: ignore[arg-type]
        assert torch.equal(shown.trace.expert_N, expected.expert_N)


def test_dense_models_show_likelihoods_alone() -> None:
    from hmoe.config.recipes import check_model
    from hmoe.model.transformer import build_transformer

    model = build_transformer(check_model(dict(dim=16, layers=1, heads=2, vocab=257, ffn=11)), 0)
    shown = hmoe.show(model, ByteTokenizer(), "abc")
    assert all(token.activated_ratio is None and token.experts == () for token in shown.tokens)
    assert list_layer_lines(shown.tokens[0]) == []
    assert "abc" in shown._repr_html_().replace("<span>", "").replace("</span>", "")


def test_values_are_plain_and_an_empty_text_is_refused() -> None:
    shown = hmoe.show(build_small_model(), ByteTokenizer(), "ab")
    first = list_token_values(shown)[0]
    assert set(first) == {"index", "token", "text", "activated_ratio", "nll", "experts"}
    assert set(first["experts"][0]) == {"layer", "expert", "width", "gate", "probability"}
    with pytest.raises(hmoe.ConfigError, match="text: is empty"):
        hmoe.show(build_small_model(), ByteTokenizer(), "")


def test_a_text_begins_as_the_models_texts_do() -> None:
    model = build_small_model()
    shown = hmoe.show(model, ByteTokenizer(), "ab", begin=[7, 8])
    assert shown.trace.tokens_T.tolist() == [7, 8, *b"ab"]
    assert [token.text for token in shown.tokens] == ["a", "b"]
    expected = hmoe.trace(model, [7, 8, *b"ab"])
    assert [token.nll for token in shown.tokens] == pytest.approx(expected.nll_T[2:].tolist())
    chosen_ZE = expected.chosen_ZTE[:, 2:].double().mean(1)
    heights = [f"{share:.1%} of the tokens" for share in chosen_ZE.flatten().tolist()]
    html = shown._repr_html_()
    assert all(height in html for height in heights)
    assert html.count("<i title=") == chosen_ZE.numel()
