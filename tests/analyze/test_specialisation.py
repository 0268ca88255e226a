import math

import numpy as np
import pytest
from scipy import stats

from hmoe.analyze.planted import plant_routing
from hmoe.analyze.specialisation import measure_specialisation
from hmoe.errors import ConfigError
from tests.analyze.helpers import sum_up
from tests.analyze.tallies import tally_tokens

NAMES = {
    "kind": ["word", "continuation", "digit", "punctuation"],
    "digits": ["no", "yes"],
    "part of word": ["begins", "continues"],
    "capitals": ["no", "yes"],
}


def select(rows, label, layer="all", **columns):
    rows = [row for row in rows if row["label"] == label and layer in ("all", row["layer"])]
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def count_pairs(class_T, chosen_TE):
    """Class x expert, by loops; tokens of class -1 do not count."""
    table = np.zeros((class_T.max() + 1, chosen_TE.shape[1]))
    for token, expert in zip(*np.nonzero(chosen_TE), strict=True):
        if class_T[token] >= 0:
            table[class_T[token], expert] += 1
    return table


def test_information_and_profiles_are_those_of_slow_counts():
    planted = plant_routing("domains", 2, num_documents=10, tokens_per_document=100)
    tables = measure_specialisation(sum_up(planted), NAMES, num_draws=20)
    places, types = planted.text.places, planted.text.trace.tokens_T.numpy()
    kind_T = np.where(places.ordinary_T, planted.labels["kind"][types], -1)
    for label, class_T in (("domain", places.domain_T), ("kind", kind_T)):
        bits = []
        for layer, chosen_TE in enumerate(planted.text.trace.chosen_ZTE.numpy()):
            table = count_pairs(class_T, chosen_TE)
            sums = [table.ravel(), table.sum(0), table.sum(1)]
            cells, *margins = (
                stats.entropy(n, base=2) + ((n > 0).sum() - 1) / (2 * n.sum() * math.log(2)) for n in sums
            )
            bits.append(sum(margins) - cells)
            [row] = select(tables["specialisation"], label, layer)
            assert row["bits"] == pytest.approx(bits[-1], abs=1e-12)
            assert row["low"] < row["bits"] < row["high"]
            lifts = table / table.sum(0) / (table.sum(1) / table.sum())[:, None]
            for expert in range(8):
                rows = select(tables["profiles"], label, layer, expert=expert)
                share = table[:, expert] / table[:, expert].sum()
                assert [row["share"] for row in rows] == pytest.approx(list(share))
                assert [row["lift"] for row in rows] == pytest.approx(list(lifts[:, expert]))
                assert all(row["low"] <= row["lift"] <= row["high"] for row in rows)
                assert {row["width"] for row in rows} == {planted.text.trace.widths[expert]}
        [row] = select(tables["specialisation"], label, None)
        assert row["bits"] == pytest.approx(np.mean(bits), abs=1e-12)
    assert [row["class"] for row in rows] == NAMES["kind"]


def test_domains_that_were_planted_are_found_and_nothing_else():
    planted = plant_routing("domains", 1, document_effect=0.5)
    rows = measure_specialisation(sum_up(planted), NAMES)["specialisation"]
    for row in select(rows, "domain"):
        assert row["p"] == 1 / 201
        assert row["low"] > row["null_high"] > row["null_mean"]
    assert min(row["p"] for row in select(rows, "capitals")) > 0.05


def test_an_expert_of_digits_is_found():
    planted = plant_routing("digits", 3, document_effect=0.5)
    tables = measure_specialisation(sum_up(planted), NAMES)
    [layer], expert = planted.truth["layers"], planted.truth["expert"]
    [row] = select(tables["specialisation"], "digits", layer)
    assert row["p"] == 1 / 201
    assert row["low"] > row["null_high"]
    [row] = select(tables["specialisation"], "digits", 1 - layer)
    assert row["p"] > 0.05
    [row] = select(tables["profiles"], "digits", layer, expert=expert, **{"class": "yes"})
    assert row["share"] == 1
    assert row["low"] > 2
    assert row["p"] < 0.01
    assert row["pairs"] > 20


def test_classes_whose_tokens_have_more_experts_are_liked_by_none():
    draw = np.random.default_rng(1)
    type_T = draw.integers(0, 10, 4000)
    counts_T = np.where(type_T < 5, 1, 3)
    ranks_TE = np.argsort(draw.random((4000, 6)), axis=1)
    tally = tally_tokens(
        np.arange(4000) // 100, type_T, (ranks_TE < counts_T[:, None])[:, None],
        labels={"a": (np.arange(10) < 5).astype(np.int64)},
    )  # fmt: skip
    rows = measure_specialisation(tally, {"a": ["many", "few"]}, num_draws=20)["profiles"]
    assert [row["lift"] for row in rows if row["label"] == "a"] == pytest.approx([1] * 12, abs=0.2)
    assert [row["lift_null"] for row in rows if row["label"] == "a"] == pytest.approx([1] * 12, abs=0.03)


def draw_count_only(seed):
    """Documents of two domains and two kinds of types, that take other numbers of experts; some are more popular."""
    draw = np.random.default_rng([11, seed])
    type_T, document_T = draw.integers(0, 10, 5000), np.arange(5000) // 100
    counts_T = np.where(type_T < 5, 1, 3)
    scores_TE = np.log([8, 1, 1, 0.3]) + draw.gumbel(size=(5000, 4))
    chosen_TE = np.argsort(np.argsort(-scores_TE, axis=1), axis=1) < counts_T[:, None]
    labels = {"a": (np.arange(10) < 5).astype(np.int64)}
    return type_T, tally_tokens(document_T, type_T, chosen_TE[:, None], labels=labels)


def test_popular_experts_are_expected_where_tokens_take_few():
    found = 0
    for seed in range(5):
        _, tally = draw_count_only(seed)
        rows = measure_specialisation(tally, {"a": ["many", "few"]}, num_draws=2)["profiles"]
        own = [row for row in rows if row["label"] == "a"]
        assert max(row["lift"] for row in own) > 1.5
        assert [row["lift"] for row in own] == pytest.approx([row["lift_null"] for row in own], abs=0.15)
        found += min(row["p"] for row in own) <= 0.05
    assert found <= 1


def test_domains_too_have_the_null_of_their_number_of_experts():
    """Two domains of which one takes three experts: by hand, from how often each expert is among so many."""
    draw = np.random.default_rng(2)
    domain_T = np.arange(4000) // 2000
    scores_TE = np.log([6, 1, 1, 1]) + draw.gumbel(size=(4000, 4))
    chosen_TE = np.argsort(np.argsort(-scores_TE, axis=1), axis=1) < np.array([1, 3])[domain_T][:, None]
    tally = tally_tokens(np.arange(4000) // 100, np.zeros(4000, np.int64), chosen_TE[:, None])
    for name in ("domain_tokens", "domain_pairs", "domain_num_experts"):
        setattr(tally, name, [])
    for domain in (0, 1):
        fold_T = (np.arange(4000) // 100 % tally.num_folds)[domain_T == domain]
        pairs = np.zeros_like(tally.pairs_by_fold)
        np.add.at(pairs[:, 0], fold_T, chosen_TE[domain_T == domain].astype(np.int64))
        tally.domain_pairs.append(pairs)
        tally.domain_tokens.append(np.bincount(fold_T, minlength=tally.num_folds))
        counts = chosen_TE[domain_T == domain].sum(1)
        tally.domain_num_experts.append(np.bincount(counts, minlength=5)[None])
    tally.domains = ["one", "three"]
    rows = select(measure_specialisation(tally, {}, num_draws=2)["profiles"], "domain")
    assert [row["lift"] for row in rows] == pytest.approx([row["lift_null"] for row in rows], rel=0.15)
    assert rows[0]["lift_null"] > 1.5
    assert min(row["p"] for row in rows) > 0.05


def count_likings(seeds, **text):
    """How many of so many nulls call anything liked or avoided, by label."""
    counts = dict.fromkeys(("kind", "digits", "domain"), 0)
    for seed in seeds:
        planted = plant_routing("noise", seed, tokens_per_document=64, **text)
        rows = measure_specialisation(sum_up(planted), NAMES, num_draws=1)["profiles"]
        for label in counts:
            tails = [row["p"] for row in select(rows, label) if row["p"] is not None]
            counts[label] += min(tails, default=1.0) <= 0.05
    return counts


def test_noise_gives_no_expert_a_liking():
    counts = count_likings(range(12), document_effect=1.0, num_documents=40)
    assert sum(counts.values()) <= stats.binom.isf(0.001, 36, 0.05)
    # Few documents with strong preferences: as many degrees of freedom as documents less one announce 11.
    counts = count_likings(range(12), document_effect=3.0, num_documents=12)
    assert sum(counts.values()) <= stats.binom.isf(0.001, 36, 0.05)


@pytest.mark.parametrize(("rare_tokens", "is_tested"), [(19, False), (20, True)])
def test_classes_of_few_tokens_have_no_p(rare_tokens, is_tested):
    draw = np.random.default_rng(0)
    type_T = np.arange(1000) % 2
    type_T[: rare_tokens * 50 : 50] = 2  # two of each of ten documents
    chosen_TE = np.argsort(draw.random((1000, 4)), axis=1) < 2
    labels = {"a": np.array([0, 0, 1])}
    tally = tally_tokens(np.arange(1000) // 100, type_T, chosen_TE[:, None], labels=labels)
    rows = measure_specialisation(tally, {"a": ["often", "rare"]}, num_draws=1)["profiles"]
    rare = [row["p"] for row in rows if row["class"] == "rare"]
    assert [p is not None for p in rare] == [is_tested] * 4
    assert all(row["p"] is not None for row in rows if row["class"] == "often")


@pytest.mark.slow
@pytest.mark.parametrize("document_effect", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("num_documents", [12, 40, 200])
def test_two_hundred_nulls_have_likings_in_5_of_100(document_effect, num_documents):
    counts = count_likings(range(200), document_effect=document_effect, num_documents=num_documents)
    assert max(counts.values()) <= stats.binom.isf(0.025 / 27, 200, 0.05)  # 27 counts are looked at together


def count_small_p(num_draws, **text):
    """How many of so many nulls have p of 5% or less, by label."""
    counts = dict.fromkeys(("domain", "kind", "digits"), 0)
    permuted = 0
    for seed in range(num_draws):
        planted = plant_routing("noise", seed, **text)
        rows = measure_specialisation(sum_up(planted), NAMES, num_draws=99)["specialisation"]
        for label in counts:
            counts[label] += select(rows, label, None)[0]["p"] <= 0.05
        [row] = select(rows, "kind", None)
        permuted += row["bits"] > row["null_high"]
    return counts, permuted


def test_moods_of_documents_are_no_specialisation():
    counts, permuted = count_small_p(12, document_effect=4.0, tokens_per_document=64)
    assert max(counts.values()) <= stats.binom.isf(0.0005, 12, 0.05)
    assert permuted > stats.binom.isf(0.0005, 12, 0.05)  # pairs alone would announce it


@pytest.mark.slow
@pytest.mark.parametrize("document_effect", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("num_documents", [12, 40, 200])
def test_two_hundred_nulls_have_small_p_in_5_of_100(document_effect, num_documents):
    counts, _ = count_small_p(
        200, document_effect=document_effect, num_documents=num_documents, tokens_per_document=64
    )
    assert max(counts.values()) <= stats.binom.isf(0.025 / 27, 200, 0.05)  # 27 counts are looked at together


def test_few_documents_have_no_p():
    planted = plant_routing("domains", 0, num_documents=4)
    rows = measure_specialisation(sum_up(planted), NAMES)["specialisation"]
    assert [row["p"] for row in rows] == [None] * len(rows)
    assert all(row["low"] is not None for row in rows)
    planted = plant_routing("noise", 0, num_documents=8, num_domains=1)
    rows = measure_specialisation(sum_up(planted), NAMES)["specialisation"]
    assert {(row["p"], row["null_mean"], round(row["bits"], 12)) for row in select(rows, "domain")} == {
        (None, None, 0)
    }
    assert all(row["p"] is not None for row in select(rows, "kind"))


@pytest.mark.parametrize("num_tokens", [0, 1, 200])
@pytest.mark.parametrize("num_experts", [1, 3])
def test_edges(num_tokens, num_experts):
    """Nothing read, a single token or expert, experts without pairs, classes that are never seen, no class at all."""
    chosen = np.zeros((num_tokens, 2, num_experts), bool)
    chosen[:, :, 0] = True
    labels = {"a": np.array([0, 0, 2]), "b": np.array([-1, -1, -1]), "c": np.array([-1, -1, 1])}
    documents = np.arange(num_tokens) // 10
    tally = tally_tokens(
        documents, np.arange(num_tokens) % 2, chosen, widths=(0, 8, 16)[:num_experts], vocab=3, labels=labels
    )
    tables = measure_specialisation(tally, {"a": "xyz", "b": "", "c": "xy"}, num_draws=20)
    assert {row["label"] for row in tables["profiles"]} == {"domain", "a", "c"}
    for rows in tables.values():
        values = [value for row in rows for value in row.values()]
        assert all(type(value) in (int, float, str, type(None)) for value in values)
        assert all(math.isfinite(value) for value in values if isinstance(value, float))
    information = select(tables["specialisation"], "a")
    assert [row["bits"] for row in information] == (
        pytest.approx([0] * 3, abs=1e-12) if num_tokens else [None] * 3
    )
    assert {row["p"] for row in tables["specialisation"]} == {None}
    assert {row["share"] for row in select(tables["profiles"], "c")} == {None}


def test_the_same_seed_gives_the_same():
    tally = sum_up(plant_routing("noise", 0, num_documents=8))
    first, again, other = (
        measure_specialisation(tally, NAMES, num_draws=20, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_wrong_arguments_are_named():
    tally = sum_up(plant_routing("noise", 0, num_documents=2))
    with pytest.raises(ConfigError, match="class_names of 'kind': 1 names, must be at least 4"):
        measure_specialisation(tally, {**NAMES, "kind": ["word"]})
    with pytest.raises(ConfigError, match="num_draws = 0: must be at least 1"):
        measure_specialisation(tally, NAMES, num_draws=0)
