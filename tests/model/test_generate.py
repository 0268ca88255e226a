import pytest
import torch

from hmoe import ConfigError, NonFiniteError
from hmoe.config.recipes import check_model
from hmoe.model.generate import Sampling, generate_tokens, sample_token
from hmoe.model.likelihood import measure_mean_nll, measure_text_nll
from hmoe.model.transformer import Transformer, build_transformer


class Vocabulary:
    vocab_size = 31
    ends: tuple[int, ...] = (-1,)


@pytest.fixture
def model() -> Transformer:
    moe = {"widths": [8, 24, 16], "router": {"name": "top_p", "p": 0.6}}
    return build_transformer(
        check_model(dict(dim=16, layers=3, heads=4, kv_heads=2, vocab=31, moe=moe)), 0, torch.float64
    )


def test_cached_logits_are_the_uncached_ones(model: Transformer) -> None:
    tokens = torch.randint(0, 31, (2, 12))
    whole = model(tokens)[0]
    cache = model.new_cache(2, 12)
    pieces = [model(tokens[:, a:b], context=cache)[0] for a, b in ((0, 5), (5, 6), (6, 10), (10, 12))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-11)


def test_greedy_text_is_the_argmax_of_uncached_logits(model: Transformer) -> None:
    ids = [3, 7]
    for token in generate_tokens(model, [3, 7], 10, Sampling(temperature=0), 0, Vocabulary()):
        assert token == model(torch.tensor([ids]))[0][0, -1].argmax()
        ids.append(token)
    assert len(ids) == 12


def test_writing_does_without_the_capacity_of_training() -> None:
    """What a token becomes must not depend on how much of the text is read at once."""
    router = {"name": "top_k", "k": 1, "capacity_factor": 0.5}
    moe = {"widths": [8, 24, 16], "router": router}
    model = build_transformer(
        check_model(dict(dim=16, layers=3, heads=4, vocab=31, moe=moe)), 0, torch.float64
    )
    free = build_transformer(
        check_model(
            dict(dim=16, layers=3, heads=4, vocab=31, moe=moe | {"router": {"k": 1, "name": "top_k"}})
        ),
        0,
    )
    free.double().load_state_dict(model.state_dict())
    prompt = list(range(3, 27))
    text, expected = (
        list(generate_tokens(each, prompt, 10, Sampling(temperature=0), 0, Vocabulary()))
        for each in (model, free)
    )
    assert text == expected
    tokens = torch.tensor([prompt])
    assert not torch.allclose(model(tokens)[0], free(tokens)[0])  # there it holds


def test_a_seed_fixes_the_text_and_stop_ends_it(model: Transformer) -> None:
    first, again, other = (
        list(generate_tokens(model, [1], 40, Sampling(1.0), seed, Vocabulary())) for seed in (5, 5, 6)
    )
    assert first == again != other
    ending = Vocabulary()
    ending.ends = (first[7],)
    stopped = list(generate_tokens(model, [1], 40, Sampling(1.0), 5, ending))
    assert stopped == first[: first.index(first[7]) + 1]


def test_only_tokens_that_the_tokenizer_has_are_drawn(model: Transformer) -> None:
    small = Vocabulary()
    small.vocab_size = 5
    assert max(generate_tokens(model, [1], 60, Sampling(5.0), 0, small)) < 5


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    generator = torch.Generator().manual_seed(0)
    drawn = {how: {sample_token(logits, how, generator) for _ in range(300)} for how in (
        Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.65), Sampling(1.0, top_p=0.01),
        Sampling(0.0))}  # fmt: skip
    assert list(drawn.values()) == [{0, 1, 2, 3}, {1, 2}, {1, 2}, {1}, {1}]


def test_frequencies_are_those_of_the_softmax() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(
        torch.tensor([sample_token(logits, Sampling(1.0), generator) for _ in range(4000)]), minlength=3
    )
    torch.testing.assert_close(counts / 4000, logits.exp(), atol=0.03, rtol=0)


def test_bad_requests(model: Transformer) -> None:
    for make in (
        lambda: Sampling(-1),
        lambda: Sampling(float("nan")),
        lambda: Sampling(1, -2),
        lambda: Sampling(1, 0, 0),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="no tokens"):
        list(generate_tokens(model, [], 3, Sampling(), 0, Vocabulary()))
    with pytest.raises(NonFiniteError):
        sample_token(torch.tensor([float("nan"), 0.0]), Sampling(), torch.Generator())


def test_text_nll_counts_every_token_once(model: Transformer) -> None:
    tokens = torch.randint(0, 31, (9,)).tolist()
    logits = model(torch.tensor([tokens[:-1]]))[0][0]
    exact = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum").item()
    assert measure_text_nll(model, tokens, window=50) == pytest.approx(exact)
    assert measure_text_nll(model, tokens, window=8) == pytest.approx(exact)
    one_token = sum(measure_text_nll(model, tokens[i : i + 2], 4) for i in range(8))
    assert measure_text_nll(model, tokens, window=1) == pytest.approx(one_token)
    assert measure_text_nll(model, tokens[:1], window=4) == 0


def test_windows_read_at_least_half_a_window_of_context(model: Transformer) -> None:
    tokens = torch.randint(0, 31, (30,)).tolist()
    expected = 0.0
    for target in range(1, 30):
        start = 0 if target <= 8 else (target - 8 + 3) // 4 * 4
        logits = model(torch.tensor([tokens[start:target]]))[0][0, -1]
        expected -= torch.log_softmax(logits, 0)[tokens[target]].item()
    assert measure_text_nll(model, tokens, window=8) == pytest.approx(expected)


def test_mean_nll(model: Transformer) -> None:
    x, y = torch.randint(0, 31, (2, 3, 7))
    logits = model(x)[0]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).item()
    assert measure_mean_nll(model, x, y) == pytest.approx(expected)
