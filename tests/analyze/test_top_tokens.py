import numpy as np
import pytest
from scipy import stats

from hmoe.analyze.planted import plant_routing
from hmoe.analyze.top_tokens import measure_top_tokens
from hmoe.errors import ConfigError
from tests.analyze.helpers import sum_up
from tests.analyze.tallies import tally_tokens


def count_ordinary(planted):
    """Tokens and pairs by type, straight from the trace."""
    ordinary = planted.text.places.ordinary_T
    types = planted.text.trace.tokens_T.numpy()
    chosen = planted.text.trace.chosen_ZTE.numpy()
    return ordinary, types, chosen


def test_lift_is_that_of_a_slow_count():
    compared = 0
    for seed in range(5):
        planted = plant_routing("twins", seed, num_documents=60, tokens_per_document=100)
        ordinary, types, chosen = count_ordinary(planted)
        rows = measure_top_tokens(sum_up(planted), planted.texts)["top_tokens"]
        for row in rows[::7]:
            served = chosen[row["layer"], :, row["expert"]]
            own = ordinary & (types == row["token"])
            lift = served[own].mean() / served[ordinary].mean()
            assert row["lift"] == pytest.approx(lift)
            assert row["count"] == own.sum() >= 20
            assert row["text"] == planted.texts[row["token"]]
            assert row["width"] == planted.text.trace.widths[row["expert"]]
            tail = stats.binom.sf(served[own].sum() - 1, own.sum(), served[ordinary].mean())
            assert tail < row["q"] <= 0.05
            assert 0 < row["lift_low"] < row["lift"] < row["lift_high"]
            assert row["lift"] > row["lift_null"] > 0
            compared += 1
    assert compared > 50


def test_rows_are_in_the_order_of_the_lower_bound():
    planted = plant_routing("twins", 1, num_documents=60)
    tally = sum_up(planted)
    rows = measure_top_tokens(tally, planted.texts, num_top=3)["top_tokens"]
    everything = measure_top_tokens(tally, planted.texts, num_top=1000)["top_tokens"]
    assert [row for row in everything if row["place"] <= 3] == rows
    for cell in {(row["layer"], row["expert"]) for row in everything}:
        own = [row for row in everything if (row["layer"], row["expert"]) == cell]
        assert [row["place"] for row in own] == list(range(1, len(own) + 1))
        bounds = [row["lift_low"] / row["lift_null"] for row in own]
        assert bounds == sorted(bounds, reverse=True)
    assert any(row["place"] > 3 for row in everything)


@pytest.mark.parametrize("document_effect", [0.0, 1.0])
def test_an_expert_of_digits_lists_digits_alone(document_effect):
    planted = plant_routing("digits", 5, document_effect=document_effect)
    rows = measure_top_tokens(sum_up(planted), planted.texts)["top_tokens"]
    [layer], expert = planted.truth["layers"], planted.truth["expert"]
    own = [row for row in rows if (row["layer"], row["expert"]) == (layer, expert)]
    ordinary, types, _ = count_ordinary(planted)
    counts = np.bincount(types[ordinary], minlength=120)
    digits = {v for v in range(120) if planted.labels["digits"][v] == 1 and counts[v] >= 20}
    assert {row["token"] for row in own} == digits
    assert len(digits) >= 5
    assert not [row for row in rows if row["layer"] != layer]


def draw_topical(draw, num_documents, strength, num_experts=5, vocab=40):
    """Documents with a topic and a mood of the router, which have nothing to do with each other."""
    lengths = (40 * np.exp(draw.normal(0, 0.8, num_documents))).astype(int) + 1
    document_T = np.repeat(np.arange(num_documents), lengths)
    mixes = draw.dirichlet(np.full(vocab, 0.4), num_documents)
    type_T = np.concatenate([draw.choice(vocab, n, p=mix) for n, mix in zip(lengths, mixes, strict=True)])
    mood = strength * draw.normal(0, 1, (num_documents, 1, num_experts)) + np.linspace(0, 3, num_experts)
    logits = mood[document_T] + draw.gumbel(size=(len(type_T), 1, num_experts))
    return document_T, type_T, logits >= np.sort(logits, 2)[:, :, -2:-1]


def count_announcements(num_draws, strength):
    """How many of so many nulls list anything, and how many the binomial test alone would announce."""
    listed = announced = 0
    for seed in range(num_draws):
        document_T, type_T, chosen_TZE = draw_topical(np.random.default_rng([7, seed]), 30, strength)
        tally = tally_tokens(document_T, type_T, chosen_TZE, vocab=40)
        listed += bool(measure_top_tokens(tally, ["x"] * 40)["top_tokens"])
        counts = tally.types_by_fold.sum(0)
        kept = counts >= 20
        rates = tally.pairs[0].sum(1, keepdims=True) / counts.sum()
        tails = stats.binom.sf(tally.pairs[0][:, kept] - 1, counts[kept], rates)
        announced += (stats.false_discovery_control(tails.ravel()) <= 0.05).any()
    return listed, announced


def test_moods_of_documents_list_nothing():
    listed, announced = count_announcements(25, 1.5)
    assert listed <= stats.binom.isf(0.001, 25, 0.05)
    assert announced > stats.binom.isf(0.001, 25, 0.05)  # the binomial test alone does not hold


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5, 20.0])
def test_two_hundred_nulls_list_nothing_in_95_of_100(strength):
    listed, _ = count_announcements(200, strength)
    assert listed <= stats.binom.isf(0.025, 200, 0.05)


def draw_hungry_types(draw, popularity, planted_type=None):
    """Tokens whose type decides how many experts serve them, and nothing else; but one type may get the last expert."""
    type_T = draw.integers(0, 30, 6000)
    counts_T = np.array([1, 1, 2, 4])[type_T % 4]
    scores_TE = np.log(popularity) + draw.gumbel(size=(len(type_T), len(popularity)))
    scores_TE[type_T == planted_type, -1] += 2
    return type_T, (np.argsort(np.argsort(-scores_TE, axis=1), axis=1) < counts_T[:, None])[:, None]


def test_types_that_take_many_experts_are_liked_by_none():
    popularity = np.array([8.0, 2, 2, 1, 1, 0.5])
    document_T = np.repeat(np.arange(60), 100)
    listed = announced = 0
    for seed in range(8):
        type_T, experts_TZE = draw_hungry_types(np.random.default_rng([3, seed]), popularity)
        layers_TZE = np.concatenate([np.roll(experts_TZE, 1000, axis=0), experts_TZE], axis=1)
        tally = tally_tokens(document_T, type_T, layers_TZE)
        rows = measure_top_tokens(tally, ["x"] * 30)["top_tokens"]
        listed += bool(rows)
        rates = tally.pairs[1].sum(1, keepdims=True) / 6000
        tails = stats.binom.sf(tally.pairs[1] - 1, tally.types_by_fold.sum(0), rates)
        announced += (stats.false_discovery_control(tails.ravel()) <= 0.05).any()
    assert listed <= stats.binom.isf(0.001, 8, 0.05)
    assert announced == 8


def test_a_type_that_an_expert_likes_is_listed_beside_types_that_take_many():
    draw = np.random.default_rng(4)
    type_T, experts_TZE = draw_hungry_types(draw, np.ones(6), planted_type=12)
    tally = tally_tokens(np.repeat(np.arange(60), 100), type_T, experts_TZE)
    [row] = measure_top_tokens(tally, [str(v) for v in range(30)])["top_tokens"]
    assert (row["expert"], row["text"]) == (5, "12")
    own_T, count_T, chosen_T = type_T == 12, experts_TZE[:, 0].sum(1), experts_TZE[:, 0, 5]
    assert (count_T[own_T] == 1).all()
    assert row["lift"] == pytest.approx(chosen_T[own_T].mean() / chosen_T.mean())
    # Experts are about equally popular, so a token with one of six has a sixth of a chance to meet each.
    assert row["lift_null"] == pytest.approx(1 / 6 / chosen_T.mean(), rel=0.1)


def test_an_expert_that_joins_the_chosen_ones_for_a_type_likes_it():
    draw = np.random.default_rng(5)
    type_T = draw.integers(0, 10, 3000)
    experts_TZE = np.zeros((3000, 1, 5), bool)
    experts_TZE[np.arange(3000), 0, draw.integers(0, 4, 3000)] = True
    experts_TZE[type_T == 7, 0, 4] = True
    rows = measure_top_tokens(
        tally_tokens(np.repeat(np.arange(60), 50), type_T, experts_TZE), list("abcdefghij")
    )
    assert [(row["expert"], row["text"]) for row in rows["top_tokens"]] == [(4, "h")]


def test_what_stands_in_a_single_document_is_not_listed():
    document_T = np.repeat(np.arange(20), 50)
    type_T = np.tile(np.arange(5), 200)
    type_T[:50] = 5
    chosen = np.zeros((1000, 1, 2), bool)
    chosen[np.arange(1000), 0, np.isin(type_T, (4, 5)).astype(int)] = True
    rows = measure_top_tokens(tally_tokens(document_T, type_T, chosen), list("abcdef"))["top_tokens"]
    assert [row["text"] for row in rows if row["expert"] == 1] == ["e"]


@pytest.mark.parametrize("num_tokens", [0, 1, 300])
@pytest.mark.parametrize("num_experts", [1, 3])
def test_edges(num_tokens, num_experts):
    """Nothing read, a single token, a single document, a single expert, an expert that is never or always chosen."""
    chosen = np.zeros((num_tokens, 1, num_experts), bool)
    chosen[:, :, 0] = True
    if num_experts > 1:
        chosen[::2, :, 1] = chosen[1::2, :, 2] = True
    type_T = np.arange(num_tokens) % 2
    for document_T in (np.zeros(num_tokens, np.int64), np.arange(num_tokens) // 10):
        tally = tally_tokens(document_T, type_T, chosen, widths=(0, 8, 16)[:num_experts], vocab=5)
        rows = measure_top_tokens(tally, list("abcde"))["top_tokens"]
        is_told = num_tokens == 300 and num_experts > 1 and bool(document_T.any())
        assert [(row["expert"], row["text"], row["lift"]) for row in rows] == [
            (1, "a", 2.0),
            (2, "b", 2.0),
        ] * is_told


def test_a_number_of_experts_that_leaves_no_choice_tells_nothing():
    chosen = np.zeros((300, 1, 3), bool)
    chosen[:, :, 0] = chosen[::2, :, 1] = True
    tally = tally_tokens(np.arange(300) // 10, np.arange(300) % 2, chosen)
    assert not measure_top_tokens(tally, list("ab"))["top_tokens"]


def test_wrong_arguments_are_named():
    tally = tally_tokens(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones((1, 1, 2), bool))
    with pytest.raises(ConfigError, match="texts: 2 for 1 token types"):
        measure_top_tokens(tally, ["a", "b"])
    with pytest.raises(ConfigError, match="num_top = 0: must be at least 1"):
        measure_top_tokens(tally, ["a"], num_top=0)
