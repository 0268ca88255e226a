import numpy as np
import pytest
from scipy import stats

from hmoe.analyze.planted import iterate_parts, plant_routing
from hmoe.analyze.token_sample import TokenSample
from hmoe.errors import ConfigError


def _read(planted, tokens, most):
    sample = TokenSample(2, most)
    for part in iterate_parts(planted, tokens):
        sample.update(part)
    return sample


def test_holds_ordinary_tokens_as_they_are():
    text = plant_routing("noise", 0).text
    sample = TokenSample(2)
    sample.update(text)
    kept = text.places.ordinary_T
    assert len(sample) == kept.sum() < 8000 == sample.num_tokens
    assert sample.share == 1
    np.testing.assert_array_equal(sample.document_T, text.places.document_T[kept])
    np.testing.assert_array_equal(sample.word_position_T, text.places.word_position_T[kept])
    np.testing.assert_array_equal(sample.type_T, text.trace.tokens_T[kept])
    np.testing.assert_array_equal(sample.nll_T, text.trace.nll_T[kept])
    np.testing.assert_array_equal(sample.units_ZT, text.trace.width_ZT[:, kept])
    np.testing.assert_array_equal(sample.num_experts_ZT, text.trace.num_experts_ZT[:, kept])


@pytest.mark.parametrize("most", [1, 900, 4100, 8000])
def test_the_same_tokens_however_the_text_is_cut(most):
    planted = plant_routing("noise", 1)
    first = _read(planted, 8000, most).list_arrays()
    assert len(first["place"]) <= most
    for tokens in (64, 640, 3000):
        other = _read(planted, tokens, most).list_arrays()
        assert other.keys() == first.keys()
        for name, array in first.items():
            np.testing.assert_array_equal(other[name], array)


def test_is_bounded_and_uniform():
    planted = plant_routing("noise", 2, num_documents=100)
    sample, whole = _read(planted, 640, 1000), _read(planted, 640, 10**6)
    assert 300 < len(sample) <= 1000
    expected = len(whole) * sample.share
    assert abs(len(sample) - expected) < 4 * np.sqrt(expected)
    places = sample.list_arrays()["place"]
    assert stats.kstest(places / sample.num_tokens, "uniform").pvalue > 0.001
    assert stats.ks_2samp(sample.nll_T, whole.nll_T).pvalue > 0.001


def test_goes_on_from_arrays():
    planted = plant_routing("noise", 3)
    parts = list(iterate_parts(planted, 1024))
    expected, begun, other = TokenSample(2, 1500), TokenSample(2, 1500), TokenSample(2)
    for part in parts:
        expected.update(part)
    for part in parts[:3]:
        begun.update(part)
    stored = begun.list_arrays()
    other.restore_arrays(stored)
    for part in parts[3:]:
        other.update(part)
    assert len(other) == len(expected)
    assert other.share == expected.share < 1
    for name, array in expected.list_arrays().items():
        np.testing.assert_array_equal(other.list_arrays()[name], array)
        assert other.list_arrays()[name].dtype == array.dtype
    assert len(begun) == len(stored["place"])  # what was stored is not touched by going on


def test_an_empty_sample():
    sample = TokenSample(3)
    assert len(sample) == 0
    assert sample.units_ZT.shape == sample.num_experts_ZT.shape == (3, 0)
    with pytest.raises(ConfigError, match="most = 0: must be at least 1 token"):
        TokenSample(3, 0)
