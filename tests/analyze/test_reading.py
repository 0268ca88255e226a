import numpy as np
import pytest
import torch

import hmoe
from hmoe.analyze.documents import encode_documents, read_split
from hmoe.analyze.reading import BLOCK_TOKENS, DocumentPart, WindowBatch, WindowReader, trace_windows
from hmoe.analyze.token_types import describe_token_types
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import ACROSS, WITHIN
from hmoe.data.tokenizer import ByteTokenizer
from tests.analyze.helpers import build_small_model

TYPES = describe_token_types(ByteTokenizer(), 257)
DOCUMENTS = [("a", "One day."), ("a", "x" * 70), ("b", "Two, three."), ("b", "")]


def read(parts: list[DocumentPart], window: int) -> tuple[list[WindowBatch], WindowReader]:
    reader = WindowReader(window, TYPES, 256, [])
    return list(reader.cut_windows(parts)), reader


def test_windows_hold_every_token_once_in_order() -> None:
    parts = list(encode_documents(DOCUMENTS, ByteTokenizer(), begin=[65, 66]))
    batches, reader = read(parts, 16)
    assert (
        np.concatenate([batch.tokens_BL.ravel() for batch in batches]).tolist()
        == np.concatenate([part.tokens for part in parts]).tolist()
    )
    document_T = np.concatenate([batch.places.document_T for batch in batches])
    assert document_T.tolist() == np.repeat(range(4), [len(part.tokens) for part in parts]).tolist()
    domain_T = np.concatenate([batch.places.domain_T for batch in batches])
    assert set(domain_T[document_T < 2]) == {0}
    assert set(domain_T[document_T >= 2]) == {1}
    assert reader.counts.documents == reader.counts.units == 4
    assert reader.counts.separators == 4
    # Domains are streams: 11 + 73 tokens are five windows and a rest, 14 + 3 one window and a rest.
    assert [batch.tokens_BL.shape for batch in batches] == [(5, 16), (1, 4), (1, 16), (1, 1)]
    assert reader.counts.first_tokens == 8
    assert all(batch.places.first_T.sum() == len(batch.tokens_BL) for batch in batches)


def test_a_text_in_parts_is_read_like_one_at_once() -> None:
    text = "Is it 12 or 13? " * 40
    whole, cut = (list(encode_documents([("a", text)], ByteTokenizer())) for _ in range(2))
    tokens = whole[0].tokens
    cut = [
        DocumentPart("a", tokens[:100], True, False, "a"),
        DocumentPart("a", tokens[100:101], False, False, "a"),
        DocumentPart("a", tokens[101:], False, True, "a"),
    ]
    (one, _), (other, reader) = read(whole, 7), read(cut, 7)
    for batch, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(batch.tokens_BL, same.tokens_BL)
        for name, value in vars(batch.places).items():
            np.testing.assert_array_equal(value, getattr(same.places, name), err_msg=name)
    assert reader.counts.documents == 1


def test_a_long_document_counts_as_several() -> None:
    lengths = [BLOCK_TOKENS, BLOCK_TOKENS + 1, 5]
    parts = [DocumentPart("a", np.zeros(length, np.int64)) for length in lengths]
    batches, reader = read(parts, 64)
    document_T = np.concatenate([batch.places.document_T for batch in batches])
    assert np.bincount(document_T).tolist() == [BLOCK_TOKENS, BLOCK_TOKENS, 1, 5]
    assert (reader.counts.documents, reader.counts.units, reader.counts.long_documents) == (3, 4, 1)


@pytest.mark.parametrize("packing", [ACROSS, WITHIN])
def test_a_split_is_read_in_the_windows_of_validation(packing: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from hmoe.data.batches import load_validation

    for name in ("a", "b"):
        texts = [f"document {i} of {name} " * 3 for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    inputs = [f"{name}={tmp_path / name}.jsonl" for name in ("a", "b")]
    request = PrepareRequest(inputs, "bytes", validation=0.5, segment_bytes=1 << 16)
    index = prepare_data(request, tmp_path / "out")
    batches, _ = read(list(read_split(index, "valid", packing)), 32)
    windows = {tuple(row) for batch in batches for row in batch.tokens_BL}
    inputs_BL, _ = load_validation(index, 32, 10_000, packing)
    assert len(inputs_BL) > 20
    assert {tuple(row) for row in inputs_BL.tolist()} <= windows


def test_a_traced_window_is_the_trace_of_its_tokens() -> None:
    model = build_small_model()
    batches, _ = read(list(encode_documents(DOCUMENTS[:2], ByteTokenizer())), 16)
    traced = trace_windows(model, batches[0])
    expected = hmoe.trace(model, torch.from_numpy(batches[0].tokens_BL))
    assert torch.equal(traced.trace.expert_N, expected.expert_N)
    assert torch.equal(traced.trace.nll_T.isnan(), torch.from_numpy(batches[0].places.first_T))


def test_memory_is_given_back_while_a_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    releases: list[int] = []
    monkeypatch.setattr("hmoe.analyze.reading.release_free_memory", lambda: releases.append(1))
    parts = [DocumentPart("a", np.zeros(4096, np.int64)) for _ in range(25)]
    batches, _ = read(parts, 64)
    assert (len(batches), len(releases)) == (25, 3)
