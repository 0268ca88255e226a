"""Sums over traced tokens, against slow loops over the same trace."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from hmoe import ConfigError
from hmoe.analyze.planted import PlantedText, iterate_parts, plant_routing
from hmoe.analyze.tally import Tally, divide_known
from hmoe.analyze.tally_memory import MAX_FOLDS, MIN_FOLDS, estimate_tally_bytes
from tests.analyze.helpers import sum_up

PLANTED = plant_routing("digits", 3, widths=(4, 0, 6), num_documents=41, tokens_per_document=23, vocab=40)


class SlowCounts:
    """Every table as counts by place, token by token and pair by pair."""

    def __init__(self, planted: PlantedText, folds: int) -> None:
        self.planted, self.folds = planted, folds
        self.counts: dict[str, Counter[tuple[int, ...]]] = {}
        pairs: Counter[tuple[int, ...]] = Counter()
        types: Counter[tuple[int, int]] = Counter()
        for t, token in enumerate(planted.text.trace.tokens_T.tolist()):
            document = int(planted.text.places.document_T[t])
            ordinary = bool(planted.text.places.ordinary_T[t])
            for z, e in self.add_token(t, document % folds):
                pairs[document, z, e, token] += ordinary
            if ordinary:
                self.add_ordinary(t, token, document % folds)
                types[document, token] += 1
        for (document, z, e, token), count in pairs.items():
            self.add("pair_squares", z, e, token, value=count**2)
            self.add("pair_products", z, e, token, value=count * types[document, token])
        for (_, token), count in types.items():
            self.add("type_squares", token, value=count**2)

    def add(self, table: str, *place: int, value: float = 1) -> None:
        self.counts.setdefault(table, Counter())[place] += value  # type: ignore[assignment]

    def list_experts(self, t: int, z: int) -> list[int]:
        trace = self.planted.text.trace
        return trace.expert_N[(trace.token_N == t) & (trace.layer_N == z)].tolist()

    def add_token(self, t: int, fold: int) -> Iterator[tuple[int, int]]:
        trace, domain = self.planted.text.trace, self.planted.text.places.domain_T[t]
        self.add("tokens_by_fold", fold)
        self.add(f"domain_tokens.{domain}", fold)
        for z in range(len(trace.blocks)):
            experts = self.list_experts(t, z)
            self.add("num_experts", z, len(experts))
            self.add(f"domain_num_experts.{domain}", z, len(experts))
            for e in range(len(trace.widths)):
                self.add("probs_by_fold", fold, z, e, value=float(trace.probs_ZTE[z, t, e]))
            for e in experts:
                self.add("pairs_by_fold", fold, z, e)
                self.add(f"domain_pairs.{domain}", fold, z, e)
                yield z, e

    def add_ordinary(self, t: int, token: int, fold: int) -> None:
        trace = self.planted.text.trace
        classes = {
            n: int(class_V[token]) for n, class_V in self.planted.labels.items() if class_V[token] >= 0
        }
        for z in range(len(trace.blocks)):
            experts = self.list_experts(t, z)
            units = sum(trace.widths[e] for e in experts)
            self.add("units_by_fold", fold, z, token, value=units)
            self.add("squared_units", z, token, value=units**2)
            self.add(f"types_by_count.{len(experts)}", z, token)
            for e in experts:
                self.add("pairs", z, e, token)
                for name, number in classes.items():
                    self.add(f"label_pairs.{name}", fold, number, z, e)
        self.add("types_by_fold", fold, token)
        for name, number in classes.items():
            self.add(f"label_tokens.{name}", fold, number)
        if np.isfinite(float(trace.nll_T[t])):
            self.add("nll_by_fold", fold, token, value=float(trace.nll_T[t]))
            self.add("nll_tokens_by_fold", fold, token)


def test_every_table_is_what_slow_loops_count() -> None:
    tally = sum_up(PLANTED)
    expected = SlowCounts(PLANTED, tally.num_folds).counts
    arrays = tally.list_arrays()
    for name in ("pair_squares", "pair_products"):
        assert not len(arrays.pop(f"{name}.overflows"))
        arrays[name] = arrays.pop(f"{name}.rest")
    tables = {name for name in arrays if name not in ("position", "open_cells", "open_types")}
    assert tables == set(expected)
    for name in sorted(tables):
        slow = np.zeros(arrays[name].shape)
        for place, value in expected[name].items():
            slow[place] = value
        np.testing.assert_allclose(arrays[name], slow, rtol=1e-12, err_msg=name)
    assert tally.num_documents == 41


@pytest.mark.parametrize("size", [64, 192])
def test_how_a_text_is_cut_into_passes_changes_nothing(size: int) -> None:
    whole, cut = sum_up(PLANTED), Tally((4, 0, 6), (1, 2), 40, PLANTED.labels)
    for part in iterate_parts(PLANTED, size):
        cut.update(part)
    cut.finish()
    for name, table in whole.list_arrays().items():
        np.testing.assert_allclose(cut.list_arrays()[name], table, rtol=1e-12, err_msg=name)


def test_a_restored_tally_goes_on_in_the_middle_of_a_document() -> None:
    parts = list(iterate_parts(PLANTED, 64))
    first, second = (Tally((4, 0, 6), (1, 2), 40, PLANTED.labels) for _ in range(2))
    for part in parts[:5]:
        first.update(part)
    second.restore_arrays(first.list_arrays())
    first.update(parts[0])  # the restored one has arrays of its own
    for part in parts[5:]:
        second.update(part)
    second.finish()
    for name, table in sum_up(PLANTED).list_arrays().items():
        np.testing.assert_allclose(second.list_arrays()[name], table, rtol=1e-12, err_msg=name)


def test_folds_are_as_many_as_large_vocabularies_leave_room_for() -> None:
    assert Tally((4,), (0,), 1000, {}).num_folds == MAX_FOLDS
    assert MIN_FOLDS <= Tally((4,), tuple(range(30)), 120_000, {}).num_folds < MAX_FOLDS


@pytest.mark.parametrize(("num_layers", "vocab"), [(2, 40), (30, 3000)])
def test_the_estimated_bytes_are_those_of_the_tables(num_layers: int, vocab: int) -> None:
    labels = {"sizes": np.arange(vocab) % 7 - 1, "ends": np.arange(vocab) % 2}
    tally = Tally((4, 0, 6), tuple(range(num_layers)), vocab, labels)
    tables = [table for name, table in tally.list_arrays().items() if name != "position"]
    expected = estimate_tally_bytes(num_layers, 3, vocab, {"sizes": 6, "ends": 2})
    assert sum(table.nbytes for table in tables) == expected


def test_tables_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoe.analyze.tally_memory.read_available_bytes", lambda: 10_000_000_000)
    monkeypatch.setattr(np, "zeros", lambda *_: pytest.fail("a table was made"))
    with pytest.raises(ConfigError) as error:
        Tally((8,) * 128, tuple(range(48)), 151_936, {})
    assert "48 MoE layers x 128 experts x 151,936 token types need 11.8 GB" in str(error.value)
    assert "10.0 GB are available" in str(error.value)


def test_more_tokens_of_a_type_than_four_bytes_count_are_refused() -> None:
    tally = sum_up(PLANTED)
    tally.tokens_by_fold[0] += 2**31
    tally.update(PLANTED.text)  # of many types, none of which is so frequent
    tally.types_by_fold[1, 7] = 2**31 - 900
    before = tally.pairs.copy()
    with pytest.raises(
        ConfigError, match=r"token type 7 occurs 2,147,48\d,\d{3} times .* at most 2,147,483,647"
    ):
        tally.update(PLANTED.text)
    np.testing.assert_array_equal(tally.pairs, before)


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="dense and has no experts"):
        Tally((), (), 40, {})


def test_quotients_without_a_denominator_are_no_numbers() -> None:
    np.testing.assert_array_equal(divide_known([1, 0, 3], [2, 0, 0]), [0.5, np.nan, np.nan])
