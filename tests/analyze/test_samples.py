"""Bounded samples of positions and windows: uniform, the same however a text is cut, resumable."""

import itertools
from typing import Any

import numpy as np
import torch

from hmoe.analyze.documents import encode_documents
from hmoe.analyze.planted import iterate_parts, plant_routing
from hmoe.analyze.positions import MOST_POSITIONS, ExpertPositions
from hmoe.analyze.reading import WindowBatch, WindowReader
from hmoe.analyze.reading_state import ReadingState
from hmoe.analyze.token_types import describe_token_types
from hmoe.analyze.traced_text import TokenPlaces, TracedText
from hmoe.analyze.window_sample import WindowSample
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.model.trace import RoutingTrace

PLANTED = plant_routing("noise", 1, widths=(4, 6, 8), num_documents=30, tokens_per_document=100)


def collect(size: int, cut_at: int | None = None) -> ExpertPositions:
    positions = ExpertPositions(2, 3)
    for i, part in enumerate(iterate_parts(PLANTED, size)):
        if i == cut_at:
            arrays = positions.list_arrays()
            positions = ExpertPositions(2, 3)
            positions.restore_arrays(arrays)
        positions.update(part)
    return positions


def test_positions_are_places_that_the_expert_served() -> None:
    trace, places, positions = PLANTED.text.trace, PLANTED.text.places, collect(64)
    served = set(zip(trace.layer_N.tolist(), trace.expert_N.tolist(), trace.token_N.tolist(), strict=True))
    for cell in range(6):
        layer, expert = divmod(cell, 3)
        assert len(set(positions.place[cell])) == MOST_POSITIONS
        for slot in range(MOST_POSITIONS):
            token = int(positions.place[cell, slot])
            assert (layer, expert, token) in served
            assert places.ordinary_T[token]
            assert positions.document[cell, slot] == places.document_T[token]
            assert positions.context[cell, slot, 12] == trace.tokens_T[token]
            assert positions.units[cell, slot] == float(trace.width_ZT[layer, token])


def test_positions_do_not_depend_on_passes_or_on_interruptions() -> None:
    places = {
        name: np.sort(collect(*how).place) for name, how in {"a": (64,), "b": (640,), "c": (64, 7)}.items()
    }
    np.testing.assert_array_equal(places["a"], places["b"])
    np.testing.assert_array_equal(places["a"], places["c"])


def list_texts(size: int, cut_at: int | None = None) -> list[list[Any]]:
    return [
        [row[name] for name in ("layer", "expert", "place", "left", "text", "right")]
        for row in collect(size, cut_at).list_rows(_Numbers())
    ]


class _Numbers(ByteTokenizer):
    """Writes ids as numbers."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_contexts_reach_over_passes_and_interruptions() -> None:
    whole = list_texts(len(PLANTED.text.trace.tokens_T))
    assert sum(len(row[3].split()) == len(row[5].split()) == 12 for row in whole) > 50
    for size in (64, 128, 640):
        assert list_texts(size) == whole
        assert all(list_texts(size, cut_at) == whole for cut_at in (1, 3))


def test_contexts_reach_over_passes_of_few_tokens() -> None:
    """The last pass of a stream may be as short as one token."""
    tokens = np.arange(60)
    document = np.repeat([0, 1], [37, 23])
    positions = ExpertPositions(1, 1)
    for start, stop in itertools.pairwise([0, 10, 11, 13, 16, 33, 34, 36, 37, 40, 60]):
        positions.update(trace_all(tokens[start:stop], document[start:stop]))
    for slot in range(MOST_POSITIONS):
        place = int(positions.place[0, slot])
        around = range(place - 12, place + 13)
        own = [i if 0 <= i < 60 and document[i] == document[place] else -1 for i in around]
        assert positions.context[0, slot].tolist() == own


def trace_all(token_T: np.ndarray, document_T: np.ndarray) -> TracedText:
    """One expert serves every token."""
    size = len(token_T)
    zeros, no = np.zeros(size, np.int64), np.zeros(size, np.bool_)
    trace = RoutingTrace(
        torch.from_numpy(token_T), (0,), (4,), torch.zeros(size, dtype=torch.int64),
        torch.arange(size), torch.zeros(size, dtype=torch.int64), torch.ones(size), torch.ones(1, size, 1),
        torch.zeros(size), torch.full((1, size), 4.0),
    )  # fmt: skip
    return TracedText(trace, TokenPlaces(document_T, zeros, no, no, zeros))


def test_positions_are_spread_over_the_text() -> None:
    places = np.concatenate([collect(64).place.ravel()])
    halves = (places < 1500).mean()
    assert 0.3 < halves < 0.7  # 96 of them: 0.5 with a deviation of 0.05


def test_context_ends_with_the_document() -> None:
    positions, document_T = collect(640), PLANTED.text.places.document_T
    for cell, slot in np.ndindex(6, MOST_POSITIONS):
        token = int(positions.place[cell, slot])
        left = positions.context[cell, slot, :12]
        assert (left >= 0).sum() <= min(12, token - int(np.searchsorted(document_T, document_T[token])))


def cut(text: str, window: int) -> list[WindowBatch]:
    reader = WindowReader(window, describe_token_types(ByteTokenizer(), 257), 256, [])
    return list(reader.cut_windows(encode_documents([("a", text)], ByteTokenizer())))


def test_windows_are_a_sample_of_bounded_size() -> None:
    (batch,) = cut("0123456789" * 100, 1001)
    rows = [
        WindowBatch(batch.tokens_BL.reshape(77, 13)[i : i + 7], PLANTED.text.places) for i in range(0, 77, 7)
    ]
    rows = [
        WindowBatch(
            row.tokens_BL,
            type(row.places)(
                *(np.zeros(91, np.int64),) * 2, *(np.zeros(91, bool),) * 2, np.zeros(91, np.int64)
            ),
        )
        for row in rows
    ]
    sample, again = WindowSample(13, 100), WindowSample(13, 100)
    for i, row in enumerate(rows):
        sample.update(row)
        if i == 5:
            arrays = again.list_arrays()
            again = WindowSample(13, 100)
            again.restore_arrays(arrays)
        again.update(row)
    windows = [tokens.tolist() for tokens, _ in sample.list_windows()]
    assert len(windows) == 8  # the first number of windows with 100 tokens
    assert windows == [tokens.tolist() for tokens, _ in again.list_windows()]
    assert all(window in batch.tokens_BL.reshape(77, 13).tolist() for window in windows)


def test_short_windows_have_no_padding() -> None:
    sample = WindowSample(16, 64)
    for batch in cut("some words", 16):
        sample.update(batch)
    ((tokens, documents),) = sample.list_windows()
    assert len(tokens) == len(documents) == 11
    assert tokens.min() >= 0


def test_a_state_is_taken_over_only_whole_and_by_the_same_reading(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "state.npz"

    def make() -> ReadingState:
        return ReadingState(path, {"text": "a"}, lambda: {"positions": ExpertPositions(2, 3)})

    assert make().restore() == (0, False)
    state = make()
    state.sums["positions"].update(PLANTED.text)  # type: ignore[attr-defined]
    state.save(5, False)
    other = make()
    assert other.restore() == (5, False)
    np.testing.assert_array_equal(
        other.sums["positions"].list_arrays()["place"], state.sums["positions"].list_arrays()["place"]
    )
    assert ReadingState(path, {"text": "b"}, lambda: {}).restore() == (0, False)
    content = path.read_bytes()
    for damage in (content[:-200], b"", content[: len(content) // 2], b"PK" + content[5:]):
        path.write_bytes(damage)
        fresh = make()
        assert fresh.restore() == (0, False)
        assert (fresh.sums["positions"].list_arrays()["place"] == 0).all()
