"""`generate` with every cache and strategy gives the tokens of greedy decoding, or what was promised."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from hmoe import ConfigError
from tests.hub.helpers import KINDS, model, tokens

NEW = 8


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def greedy(built, ids: torch.Tensor, **options: object) -> torch.Tensor:  # type: ignore[no-untyped-def]
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False} | options
    return built.generate(ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded_static", None])
def test_every_cache_gives_the_tokens_of_no_cache(kind: str, cache: str | None) -> None:
    built, ids = model(**KINDS[kind]), tokens()
    expected = greedy(built, ids, use_cache=False)
    assert expected.shape == (2, 9 + NEW)
    if cache == "offloaded_static" and not torch.cuda.is_available():
        pytest.skip("offloading is between a GPU and the host")
    assert torch.equal(greedy(built, ids, cache_implementation=cache), expected)


def test_logits_step_by_step_are_those_of_one_pass() -> None:
    built, ids = model(router_type="top_p"), tokens(2, 12)
    with torch.no_grad():
        expected = built(ids).logits
        for cache in (DynamicCache(config=built.config), StaticCache(config=built.config, max_cache_len=20)):
            name = "cache" if "cache" in built(ids[:, :1], use_cache=True) else "past_key_values"
            steps = [built(ids[:, :5], use_cache=True, **{name: cache}).logits]
            steps += [built(ids[:, i : i + 1], use_cache=True, **{name: cache}).logits for i in range(5, 12)]
            torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-5, atol=1e-5)


def test_left_padding_changes_no_token() -> None:
    built = model()
    parts = [tokens(1, length)[0] for length in (4, 9)]
    padded = torch.stack([torch.cat([torch.zeros(9 - len(part), dtype=torch.long), part]) for part in parts])
    together = built.generate(
        padded, attention_mask=(padded != 0).long(), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    for row, part in enumerate(parts):
        assert torch.equal(together[row, 9:], greedy(built, part[None])[0, len(part) :])


def test_beam_search_finds_a_sequence_at_least_as_probable() -> None:
    built, ids = model(), tokens(1)
    beams = greedy(built, ids, num_beams=4, num_return_sequences=2, length_penalty=0.0)
    assert beams.shape == (2, 9 + NEW)

    def log_likelihood(sequence: torch.Tensor) -> float:
        with torch.no_grad():
            logits = built(sequence[None]).logits[0, 8:-1].log_softmax(-1)
        return float(logits.gather(1, sequence[9:, None]).sum())

    assert log_likelihood(beams[0]) >= log_likelihood(greedy(built, ids)[0]) - 1e-4
    assert log_likelihood(beams[0]) >= log_likelihood(beams[1]) - 1e-4


def test_assisted_and_prompt_lookup_decoding_keep_the_greedy_tokens() -> None:
    built, ids = model(), tokens(1)
    expected = greedy(built, ids)
    torch.manual_seed(5)
    assert torch.equal(greedy(built, ids, assistant_model=model()), expected)
    assert torch.equal(greedy(built, ids, prompt_lookup_num_tokens=3), expected)


def test_sampling_has_a_seed_and_several_sequences() -> None:
    built, ids = model(), tokens(1)

    def sampled(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return built.generate(ids, max_new_tokens=NEW, do_sample=True, top_p=0.9, num_return_sequences=3)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))


def test_scores_hidden_states_and_attentions_of_generation() -> None:
    built, ids = model(), tokens(1)
    built.set_attn_implementation("eager")
    out = greedy(
        built, ids, output_scores=True, output_logits=True, output_hidden_states=True, output_attentions=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert len(out.scores) == len(out.logits) == len(out.hidden_states) == len(out.attentions) == NEW
    torch.testing.assert_close(out.logits[0], built(ids).logits[:, -1], rtol=1e-5, atol=1e-5)
    assert out.attentions[1][0].shape[-1] == 10


def test_generation_goes_on_from_a_cache_and_from_embeddings() -> None:
    built, ids = model(), tokens(1)
    expected = greedy(built, ids)
    half = greedy(built, ids, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
    name = "cache" if "cache" in half else "past_key_values"
    rest = built.generate(
        half.sequences, attention_mask=torch.ones_like(half.sequences), max_new_tokens=NEW - 4, min_new_tokens=NEW - 4,
        do_sample=False, **{name: half[name]},
    )  # fmt: skip
    assert torch.equal(rest, expected)
    embedded = built.generate(
        inputs_embeds=built.model.embed_tokens(ids), attention_mask=torch.ones_like(ids), max_new_tokens=NEW,
        min_new_tokens=NEW, do_sample=False,
    )  # fmt: skip
    assert torch.equal(embedded, expected[:, 9:])


def test_experts_that_choose_cannot_generate() -> None:
    built = model(router_type="expert_choice")
    with pytest.raises(ConfigError, match="cannot generate"):
        built.generate(tokens(), max_new_tokens=2)


def test_capacity_holds_in_a_forward_pass_but_not_in_generation() -> None:
    """A text must not depend on what else is in the batch."""
    built, ids = model(**KINDS["rectified"]), tokens(4, 9)
    together = greedy(built, ids)
    for row, expected in zip(ids, together, strict=True):
        assert torch.equal(greedy(built, row[None])[0], expected)
    with torch.no_grad():
        limited = built(ids).logits
        assert not torch.allclose(limited[:1], built(ids[:1]).logits, atol=1e-3)


def test_noise_is_drawn_anew_in_training() -> None:
    built, ids = model(router_options={"jitter": 0.3, "gumbel": True}), tokens()
    with torch.no_grad():
        assert torch.equal(built(ids).logits, built(ids).logits)
        built.train()
        assert not torch.allclose(built(ids).logits, built(ids).logits)
