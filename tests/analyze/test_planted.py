import numpy as np
import pytest
import torch
from scipy import stats

from hmoe.analyze.planted import STRUCTURES, WINDOW, iterate_parts, plant_routing
from hmoe.analyze.tally import Tally
from hmoe.errors import ConfigError


def _tally(planted, parts):
    trace = planted.text.trace
    tally = Tally(trace.widths, trace.blocks, len(planted.texts), planted.labels)
    for part in parts:
        tally.update(part)
    tally.finish()
    return tally


@pytest.mark.parametrize("structure", STRUCTURES)
def test_trace_is_consistent(structure):
    planted = plant_routing(structure, 3)
    trace, places = planted.text.trace, planted.text.places
    order = np.lexsort((trace.token_N, trace.expert_N, trace.layer_N))
    assert (order == np.arange(len(order))).all()
    assert set(trace.num_experts_ZT.unique().tolist()) == {1, 2, 3}
    assert torch.allclose(trace.gate_ZTE.sum(2), torch.ones(2, 8000))
    assert torch.allclose(trace.probs_ZTE.sum(2), torch.ones(2, 8000))
    units = (trace.chosen_ZTE.double() * torch.tensor(trace.widths, dtype=torch.float64)).sum(2)
    assert torch.equal(trace.width_ZT, units)
    assert torch.equal(trace.nll_T.isnan(), torch.arange(8000) % WINDOW == 0)
    assert (np.diff(places.document_T) >= 0).all()
    assert places.document_T[-1] == 39
    assert places.separator_T.sum() == 40
    assert set(places.domain_T) == {0, 1}
    assert len(set(planted.texts)) == 120 == len(planted.labels["kind"])
    counts = torch.bincount(trace.tokens_T, minlength=120)[:-1].numpy()
    nll = [np.nanmean(trace.nll_T.numpy()[trace.tokens_T.numpy() == v]) for v in range(119)]
    assert stats.spearmanr(counts, nll).statistic < -0.4


def test_parts_together_are_the_whole():
    planted = plant_routing("twins", 1, num_documents=5)
    whole = _tally(planted, [planted.text]).list_arrays()
    parts = list(iterate_parts(planted, 3 * WINDOW + 5))
    assert len(parts[0].trace.tokens_T) == 3 * WINDOW
    assert len(parts) == 6
    for name, table in _tally(planted, parts).list_arrays().items():
        if not name.startswith("open"):
            np.testing.assert_allclose(table, whole[name], err_msg=name)


def test_one_expert_serves_all_digits_and_nothing_else():
    planted = plant_routing("digits", 0)
    [layer], expert = planted.truth["layers"], planted.truth["expert"]
    is_digit = planted.labels["digits"][planted.text.trace.tokens_T.numpy()] == 1
    chosen_ZTE = planted.text.trace.chosen_ZTE.numpy()
    assert (chosen_ZTE[layer, :, expert] == is_digit).all()
    assert is_digit.sum() > 100
    assert not any((chosen_ZTE[1 - layer, :, e] == is_digit).all() for e in range(8))


def test_twins_read_the_same_types_and_others_do_not():
    planted = plant_routing("twins", 0)
    pairs = _tally(planted, [planted.text]).pairs
    for layer in planted.truth["layers"]:
        p = {}
        for i in range(8):
            for j in range(i):
                table = pairs[layer, [i, j]]
                p[j, i] = stats.chi2_contingency(table[:, table.sum(0) > 10]).pvalue
        twins = tuple(planted.truth["experts"])
        assert p.pop(twins) > 1e-3
        assert max(p.values()) < 1e-6


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_width_follows_nll_by_the_slope(slope):
    trace = plant_routing("difficulty", 0, slope=slope).text.trace
    known = ~trace.nll_T.isnan()
    for width_T in trace.width_ZT:
        correlation = stats.spearmanr(width_T[known], trace.nll_T[known]).statistic
        assert abs(correlation) < 0.03 if slope == 0 else slope * correlation > 0.2


def test_noise_depends_on_documents_only():
    for effect in (0.0, 0.7):
        planted = plant_routing("noise", 5, document_effect=effect, num_documents=20)
        trace, document_T = planted.text.trace, planted.text.places.document_T
        layer0 = (trace.layer_N == 0).numpy()
        token_N, expert_N = trace.token_N.numpy()[layer0], trace.expert_N.numpy()[layer0]
        by_document = np.zeros((20, 8))
        np.add.at(by_document, (document_T[token_N], expert_N), 1)
        assert (stats.chi2_contingency(by_document).pvalue < 1e-6) == (effect > 0)


def test_sizes_and_domains_are_planted():
    planted = plant_routing("sizes", 0)
    tally = _tally(planted, [planted.text])
    rank_V = stats.rankdata(-tally.types_by_fold.sum(0))
    means = (tally.pairs[0] * rank_V).sum(1) / tally.pairs[0].sum(1)
    assert stats.spearmanr(means, planted.truth["places"]).statistic > 0.95
    planted = plant_routing("domains", 0, num_domains=3)
    pairs = np.stack(_tally(planted, [planted.text]).domain_pairs).sum(1)
    for layer in range(2):
        ratio = np.log(pairs[:, layer] / pairs[:, layer].sum(1, keepdims=True))
        preferences = np.array(planted.truth["preferences"][layer])
        apart = (ratio - ratio.mean(0)).ravel()
        assert np.corrcoef(apart, (preferences - preferences.mean(0)).ravel())[0, 1] > 0.95


def test_small_texts_and_unknown_structures():
    planted = plant_routing(
        "sizes", 0, widths=(0,), num_documents=1, tokens_per_document=1, vocab=6, num_domains=1
    )
    assert len(planted.text.trace.tokens_T) == 1
    assert planted.text.places.separator_T.all()
    with pytest.raises(ConfigError, match="'digit', must be one of noise, digits"):
        plant_routing("digit", 0)
    with pytest.raises(ConfigError, match="vocab = 4, must be at least 6"):
        plant_routing("noise", 0, vocab=4)
