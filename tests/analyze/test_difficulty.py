import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from hmoe.analyze.count_null import fit_weights
from hmoe.analyze.difficulty import cut_bins, describe_tokens, measure_difficulty
from hmoe.analyze.difficulty_nulls import TokenUnitsNull, draw_type_units, tabulate_width_sums
from hmoe.analyze.planted import iterate_parts, plant_routing
from hmoe.analyze.tally import Tally
from hmoe.analyze.token_sample import TokenSample
from hmoe.analyze.traced_text import TokenPlaces, TracedText
from hmoe.errors import ConfigError
from hmoe.model.trace import RoutingTrace


def _sum_up(text, vocab):
    trace = text.trace
    tally, sample = Tally(trace.widths, trace.blocks, vocab, {}), TokenSample(len(trace.blocks))
    tally.update(text)
    tally.finish()
    sample.update(text)
    return tally, sample


def _measure(planted, senses=None, **settings):
    lengths = np.array([len(text) for text in planted.texts])
    return measure_difficulty(*_sum_up(planted.text, len(planted.texts)), lengths, senses, **settings)


def _index(rows):
    return {(row["layer"], row["over"], row["feature"], row["given"]): row for row in rows}


def _make_text(types, experts, widths, documents=None, nll=None):
    """A text of these token types, with one list of experts for each token in each layer."""
    served = [(z, e, t) for z, layer in enumerate(experts) for t, own in enumerate(layer) for e in own]
    layer_N, expert_N, token_N = torch.tensor(sorted(served), dtype=torch.int64).reshape(-1, 3).T
    units = [[sum(widths[e] for e in own) for own in layer] for layer in experts]
    num_tokens = len(types)
    trace = RoutingTrace(
        tokens_T=torch.tensor(types), blocks=tuple(range(len(experts))), widths=widths, layer_N=layer_N,
        token_N=token_N, expert_N=expert_N, gate_N=torch.ones(len(layer_N)),
        probs_ZTE=torch.zeros(len(experts), num_tokens, len(widths)),
        nll_T=torch.arange(num_tokens, dtype=torch.float64) if nll is None else torch.tensor(nll),
        width_ZT=torch.tensor(units, dtype=torch.float64),
    )  # fmt: skip
    no, zeros = np.zeros(num_tokens, np.bool_), np.zeros(num_tokens, np.int64)
    return TracedText(
        trace, TokenPlaces(zeros if documents is None else np.array(documents), zeros, no, no, zeros)
    )


def test_correlations_equal_scipys():
    planted = plant_routing("difficulty", 0, slope=0.3)
    text, vocab = planted.text, len(planted.texts)
    senses = np.where(np.arange(vocab) % 2, np.arange(vocab) % 7, np.nan)
    rows = _index(_measure(planted, senses, num_draws=2)["difficulty"])
    kept = text.places.ordinary_T
    types, nll = text.trace.tokens_T.numpy()[kept], text.trace.nll_T.numpy()[kept]
    units = text.trace.width_ZT.numpy()[:, kept]
    counts = np.bincount(types, minlength=vocab)
    lengths = np.array([len(text) for text in planted.texts])
    features = {
        "frequency": counts[types], "nll": nll, "bytes": lengths[types], "senses": senses[types],
        "word_position": text.places.word_position_T[kept],
    }  # fmt: skip
    for layer, own in ((0, units[0]), (1, units[1]), (None, units.mean(0))):
        for feature, values in features.items():
            known = ~np.isnan(values)
            row = rows[layer, "tokens", feature, None]
            assert row["correlation"] == pytest.approx(stats.spearmanr(own[known], values[known]).statistic)
            assert row["count"] == known.sum()
    often = np.flatnonzero(counts >= 20)
    means = np.array([units[:, types == v].mean(1) for v in often])
    nll_means = [nll[types == v].mean() for v in often]
    expected = {"frequency": counts[often], "nll": nll_means, "bytes": lengths[often]}
    for layer in (0, 1):
        for feature, values in expected.items():
            row = rows[layer, "types", feature, None]
            assert row["correlation"] == pytest.approx(stats.spearmanr(means[:, layer], values).statistic)
            assert row["count"] == len(often)
    x, y, z = (stats.rankdata(values) for values in (means[:, 0], nll_means, counts[often]))
    left = [a - np.polyval(np.polyfit(z, a, 1), z) for a in (x, y)]
    row = rows[0, "types", "nll", "frequency"]
    assert row["correlation"] == pytest.approx(np.corrcoef(left)[0, 1])


def test_a_planted_slope_is_seen_beyond_frequency():
    for slope, sign in ((0.4, 1), (-0.4, -1)):
        rows = _index(
            _measure(plant_routing("difficulty", 5, slope=slope, document_effect=0.5), num_draws=40)[
                "difficulty"
            ]
        )
        for layer in (None, 0, 1):
            for over in ("types", "tokens"):
                row = rows[layer, over, "nll", "frequency"]
                ends = sorted((sign * row["low"], sign * row["high"]))
                assert 0 < ends[0] < sign * row["correlation"] < ends[1] <= 1
                assert not row["null_low"] <= row["correlation"] <= row["null_high"]


def _share_of_errors(num_nulls, document_effect, num_draws):
    """How often what noise gives leaves its band, and how often an interval excludes 0, by question."""
    beyond, excluded = {}, {}
    for seed in range(num_nulls):
        planted = plant_routing("noise", seed, num_documents=32, vocab=60, document_effect=document_effect)
        for key, row in _index(_measure(planted, num_draws=num_draws)["difficulty"]).items():
            inside = row["null_low"] <= row["correlation"] <= row["null_high"]
            beyond.setdefault(key, []).append(not inside)
            excluded.setdefault(key, []).append(row["low"] > 0 or row["high"] < 0)
    return ({key: np.mean(errors) for key, errors in table.items()} for table in (beyond, excluded))


def test_noise_is_rarely_more():
    beyond, excluded = _share_of_errors(8, 0.0, 40)
    # 8 texts and 24 questions, of which those that share a layer are nearly the same one: a mean of 5%.
    assert 0 < np.mean(list(beyond.values())) < 0.12
    assert np.mean(list(excluded.values())) < 0.12


@pytest.mark.slow
@pytest.mark.parametrize("document_effect", [0.0, 1.0])
def test_noise_is_more_in_one_text_of_twenty(document_effect):
    beyond, excluded = _share_of_errors(200, document_effect, 200)
    low, high = stats.binom.interval(1 - 0.05 / len(excluded), 200, 0.05)
    assert max(excluded.values()) <= high / 200
    # Leaving out documents is somewhat too careful where rare types come and go with them.
    assert min(share for key, share in excluded.items() if key[1] == "tokens") >= low / 200
    if not document_effect:  # documents with experts of their own are no permutation of pairs
        assert max(beyond.values()) <= high / 200
        assert min(beyond.values()) >= low / 200


def test_types_under_the_null_keep_their_pairs():
    planted = plant_routing("twins", 1, widths=(8, 8, 32, 0), num_documents=20)
    tally, _ = _sum_up(planted.text, 120)
    types = np.flatnonzero(tally.types_by_fold.sum(0) >= 60)
    draws = np.concatenate([np.stack(units) for units in draw_type_units(tally, types, 2000, 0)], axis=1)
    assert draws.shape == (2, 2000, len(types))
    pairs, widths = tally.pairs[0].astype(float), np.array([8, 8, 32, 0])
    # Of sampling without putting back: mean and variance of the sum of a type's widths.
    whole, own = pairs.sum(), pairs.sum(0)[types]
    mean = (pairs.sum(1) * widths).sum() / whole
    variance = (pairs.sum(1) * widths**2).sum() / whole - mean**2
    deviation = np.sqrt(own * variance * (whole - own) / (whole - 1))
    assert (abs(draws[0].mean(0) - own * mean) < 5 * deviation / np.sqrt(2000)).all()
    np.testing.assert_allclose(draws[0].std(0), deviation, rtol=0.1)


def test_tokens_under_the_null_keep_their_number_of_experts():
    widths, weights = np.array([0, 48, 16, 16]), np.array([0.5, 2, 1, 3])
    sums = tabulate_width_sums(widths, weights, np.array([0, 1, 3]))
    for count, row in zip((0, 1, 3), sums, strict=True):
        sets = list(itertools.combinations(range(4), count))
        shares = np.array([np.prod(weights[list(own)]) for own in sets])
        totals = np.array([widths[list(own)].sum() for own in sets])
        assert set(row) == set(totals)
        for value in set(totals):
            assert np.mean(row == value) == pytest.approx(
                shares[totals == value].sum() / shares.sum(), abs=1e-4
            )
    tally, sample = _sum_up(plant_routing("noise", 2, widths=(16, 32)).text, 120)
    units = TokenUnitsNull(tally, sample.num_experts_ZT, 0).draw()
    assert (units >= 16 * sample.num_experts_ZT).all()
    assert (units <= 32 * sample.num_experts_ZT).all()


@pytest.mark.parametrize("weights", [[1.0, 2, 3, 4, 5], [0.1, 1, 1, 9, 0], [1e6, 1, 2, 3, 4]])
def test_weights_give_experts_their_pairs(weights):
    counts, tokens = np.array([0, 1, 3]), np.array([50, 400, 1000])
    expected = np.zeros(5)
    for count, num_tokens in zip(counts, tokens, strict=True):
        sets = list(itertools.combinations(range(5), count))
        shares = np.array([np.prod(np.array(weights)[list(own)]) for own in sets])
        for own, share in zip(sets, shares / shares.sum(), strict=True):
            expected[list(own)] += num_tokens * share
    fitted = fit_weights(expected, counts, tokens)
    ratio = fitted / np.array(weights, float).clip(1e-9)
    used = (np.array(weights) > 0) & (np.array(weights) < 1e6)
    np.testing.assert_allclose(ratio[used], ratio[used][0], rtol=1e-3)
    assert fitted[4] > 0 or weights[4] == 0


def test_the_band_knows_that_difficult_tokens_have_more_experts():
    rng = np.random.default_rng(0)
    nll = rng.normal(size=2000)
    experts = [[rng.choice(4, 1 + (x > 0), replace=False).tolist() for x in nll]]
    text = _make_text(rng.integers(0, 5, 2000).tolist(), experts, (8, 16, 24, 32), np.arange(2000) // 50, nll)
    row = _index(measure_difficulty(*_sum_up(text, 5), np.ones(5))["difficulty"])[0, "tokens", "nll", None]
    assert row["low"] > 0.3
    assert row["null_low"] > 0.3
    assert row["null_low"] <= row["correlation"] <= row["null_high"]


@pytest.mark.slow
def test_intervals_hold_the_truth():
    """Of a long text with effects of documents: in 95% of its parts the interval has the value of all of it."""
    planted = plant_routing(
        "difficulty",
        7,
        num_documents=8000,
        tokens_per_document=80,
        num_domains=1,
        slope=0.4,
        document_effect=0.5,
    )
    lengths = np.array([len(text) for text in planted.texts])
    truth = _index(measure_difficulty(*_sum_up(planted.text, 120), lengths, num_draws=1)["difficulty"])
    held = {}
    for part in iterate_parts(planted, 40 * 80):
        rows = _index(measure_difficulty(*_sum_up(part, 120), lengths, num_draws=1)["difficulty"])
        for key, row in rows.items():
            if key[1] == "tokens":
                held.setdefault(key, []).append(row["low"] <= truth[key]["correlation"] <= row["high"])
    assert {len(shares) for shares in held.values()} == {200}
    assert truth[None, "tokens", "nll", None]["correlation"] > 0.2
    assert min(map(np.mean, held.values())) >= stats.binom.ppf(0.025 / len(held), 200, 0.95) / 200


def test_bins():
    np.testing.assert_array_equal(cut_bins(np.array([3.0, 1, 3, 7])), [1, 0, 1, 2])
    values = np.random.default_rng(0).normal(size=1000)
    bins = cut_bins(values)
    np.testing.assert_array_equal(np.bincount(bins), [100] * 10)
    assert all(values[bins == i].max() < values[bins == i + 1].min() for i in range(9))
    heavy = np.concatenate([np.zeros(900), np.arange(1, 101)])
    assert sorted(set(cut_bins(heavy))) == list(range(cut_bins(heavy).max() + 1))
    assert len(set(cut_bins(heavy)[:900])) == 1


def test_curves_rise_with_a_planted_slope():
    planted = plant_routing("difficulty", 3, slope=1.0)
    rows = _measure(planted, num_draws=1)["difficulty_curves"]
    curve = [row for row in rows if row["feature"] == "nll"]
    assert [row["bin"] for row in curve] == list(range(10))
    assert (np.diff([row["x"] for row in curve]) > 0).all()
    assert (np.diff([row["activated_ratio"] for row in curve]) > 0).all()
    assert curve[0]["high"] < curve[-1]["low"]
    assert sum(row["count"] for row in curve) == planted.text.places.ordinary_T.sum()
    text = planted.text
    whole = text.trace.width_ZT.numpy().mean(0) / sum(text.trace.widths)
    for row in (row for row in rows if row["feature"] == "word_position"):
        own = text.places.ordinary_T & (text.places.word_position_T == row["x"])
        assert row["activated_ratio"] == pytest.approx(whole[own].mean())
        assert row["count"] == own.sum()


def test_variance_within_types():
    rng = np.random.default_rng(0)
    types = rng.integers(0, 40, 3000).tolist()
    by_type, noise = [[v % 3] for v in types], rng.integers(0, 3, (3000, 1)).tolist()
    tally, sample = _sum_up(_make_text(types, [by_type, noise, [[0]] * 3000], (8, 16, 24)), 50)
    rows = measure_difficulty(tally, sample, np.ones(50), num_draws=1)["type_variance"]
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert rows[0]["within_share"] == pytest.approx(0, abs=1e-12)
    units = 8.0 * (1 + np.array(noise)[:, 0])
    within = sum(
        np.square(own - own.mean()).sum() for own in (units[np.array(types) == v] for v in range(40))
    )
    assert rows[1]["within_share"] == pytest.approx(within / np.square(units - units.mean()).sum())
    assert rows[1]["null"] == pytest.approx(2960 / 2999)
    assert rows[1]["within_share"] == pytest.approx(rows[1]["null"], abs=0.02)
    assert rows[2]["within_share"] is None is rows[2]["null"]


def test_chosen_tokens():
    text = _make_text(
        [0, 1, 0, 2], [[[0], [1], [0, 1], [1]], [[], [2], [2], [2]]], (8, 16, 0), nll=[1.0, 9, 2, 3]
    )
    tally, _ = _sum_up(text, 4)
    rows = describe_tokens(tally, [0, 3], ["a", "b", "c", "d"])["chosen_tokens"]
    assert len(rows) == 14
    summary = rows[0]
    assert summary == {
        "token": 0, "text": "a", "count": 2, "layer": None, "expert": None, "width": None, "share": None,
        "activated_ratio": (8 + 24) / (2 * 2 * 24), "nll": 1.5,
    }  # fmt: skip
    shares = {(row["layer"], row["expert"]): row["share"] for row in rows[1:7]}
    assert shares == {(0, 0): 2 / 3, (0, 1): 1 / 3, (0, 2): 0, (1, 0): 0, (1, 1): 0, (1, 2): 1}
    assert [row["width"] for row in rows[1:7]] == [8, 16, 0] * 2
    assert all(row.keys() == summary.keys() for row in rows)
    never = rows[7:]
    assert {row["count"] for row in never} == {0}
    assert {row["share"] for row in never} == {None} == {row["activated_ratio"] for row in never}


@pytest.mark.parametrize(
    "text",
    [
        _make_text([3], [[[0]]], (8,)),  # one token, one expert
        _make_text([1] * 50, [[[0, 1]] * 50], (8, 16), np.arange(50)),  # one type, nothing differs
        _make_text([1, 2] * 50, [[[0], [1]] * 50], (0, 0), np.arange(100) // 50),  # no hidden units
        _make_text(
            [1, 2] * 50, [[[]] * 100, [[0], [1]] * 50], (8, 16)
        ),  # a layer that nobody uses, one document
        _make_text([0, 1, 2] * 40, [[[0], [1], [0, 1]] * 40], (8, 16), np.repeat([0, 1], 60), [np.nan] * 120),
    ],
)
def test_edge_cases_give_rows_without_nan(text):
    tally, sample = _sum_up(text, 5)
    tables = measure_difficulty(tally, sample, np.ones(5), np.full(5, np.nan), num_draws=5)
    tables |= describe_tokens(tally, range(5), "abcde")
    for rows in tables.values():
        for row in rows:
            assert {type(value) for value in row.values()} <= {int, float, str, type(None)}
            assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())
    assert len(tables["difficulty"]) == (len(text.trace.blocks) + 1) * (7 + 9)
    assert {row["correlation"] for row in tables["difficulty"] if row["feature"] in ("bytes", "senses")} == {
        None
    }


def test_a_sample_without_tokens():
    tally = Tally((8, 16), (1,), 5, {})
    tables = measure_difficulty(tally, TokenSample(1), np.ones(5), num_draws=3)
    assert {row["correlation"] for row in tables["difficulty"]} == {None}
    assert tables["difficulty_curves"] == []


def test_a_type_of_a_single_document():
    rng = np.random.default_rng(0)
    types, documents = rng.integers(0, 9, 1000), np.arange(1000) // 100
    types[900:950] = 9  # nowhere else
    experts = [[[int(e)] for e in rng.integers(0, 3, 1000)]]
    text = _make_text(types.tolist(), experts, (8, 16, 24), documents, rng.normal(size=1000))
    tables = measure_difficulty(*_sum_up(text, 10), np.arange(10), num_draws=3)
    row = _index(tables["difficulty"])[0, "types", "bytes", None]
    assert row["count"] == 10
    # Without its document the others are compared with each other alone; every value is a number.
    units = np.array([[0], [1], [2]])[np.array(experts[0])[:, 0], 0] * 8 + 8
    left_out = []
    for document in range(10):
        kept = documents != document
        seen = np.unique(types[kept])
        means = [units[kept & (types == v)].mean() for v in seen]
        left_out.append(stats.spearmanr(seen, means).statistic)
    error = np.sqrt(9 / 10 * np.square(left_out - np.mean(left_out)).sum())
    assert row["high"] == pytest.approx(min(1, row["correlation"] + stats.t.ppf(0.975, 9) * error))


def test_a_frequency_of_another_text():
    planted = plant_routing("difficulty", 0)
    frequency = np.arange(120.0)
    rows = _index(_measure(planted, frequency_V=frequency, num_draws=2)["difficulty"])
    kept = planted.text.places.ordinary_T
    units = planted.text.trace.width_ZT.numpy()[0, kept]
    expected = stats.spearmanr(units, frequency[planted.text.trace.tokens_T.numpy()[kept]]).statistic
    assert rows[0, "tokens", "frequency", None]["correlation"] == pytest.approx(expected)


def test_faults_are_named():
    tally, sample = _sum_up(_make_text([3], [[[0]]], (8,)), 5)
    with pytest.raises(ConfigError, match=r"lengths_V: of shape \(4,\), must be \(5,\)"):
        measure_difficulty(tally, sample, np.ones(4))
    with pytest.raises(ConfigError, match="token_ids: 5 is no token of the model, must be from 0 to 4"):
        describe_tokens(tally, [5], "abcde")
    with pytest.raises(ConfigError, match="texts: 1, must be 5"):
        describe_tokens(tally, [3], "a")
