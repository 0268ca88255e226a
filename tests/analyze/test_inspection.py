import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hmoe
from hmoe import ConfigError, DataError
from hmoe.analyze.documents import encode_documents
from hmoe.analyze.inspection import (
    InspectedText,
    Inspection,
    InspectionOptions,
    help_inspecting,
    inspect_text,
)
from hmoe.errors import PeerError
from hmoe.runs.open_model import OpenedModel
from tests.analyze.helpers import open_small_model
from tests.conftest import sentences
from tests.threads import ThreadWorkers, work_together

TABLES = {
    "experts", "widths", "layers", "experts_per_token", "domains", "similarity", "clusters", "size_tests", "top_tokens",
    "specialisation", "profiles", "difficulty", "difficulty_curves", "type_variance", "chosen_tokens", "redundancy",
    "worth",
}  # fmt: skip
DOCUMENTS = [(f"domain {i % 2}", sentences(i, 4) + f" {i} {i * 7}.") for i in range(8)]
ROUTERS: dict[str, dict[str, Any]] = {
    "top-p": {},
    "top-k, raw": {"router": {"name": "top_k", "k": 2, "renormalize": False}},
    "capacity": {"router": {"name": "top_k", "k": 2, "capacity_factor": 0.7}},
    "expert choice": {"router": {"name": "expert_choice"}},
    "zero": {"zero": {"null": 1, "copy": 1, "constant": 1}},
    "equal": {"widths": [6, 6, 6, 6]},
    "one expert": {"widths": [6], "router": {"name": "top_k", "k": 1}},
}


def look(
    opened: OpenedModel,
    documents: list[tuple[str, str]] = DOCUMENTS,
    state: Path | None = None,
    **options: Any,
) -> Inspection:
    parts = encode_documents(documents, opened.tokenizer)
    chosen = InspectionOptions(**{"window": 32, "sample_tokens": 96, **options})
    return inspect_text(opened, InspectedText("texts", parts, {"name": "texts"}), chosen, state=state)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_is_looked_into(name: str) -> None:
    opened = open_small_model(**ROUTERS[name])
    inspection = look(opened)
    tables = inspection.record["tables"]
    assert set(tables) == TABLES
    assert json.loads(json.dumps(inspection.record, allow_nan=False)) == json.loads(
        json.dumps(inspection.record)
    )
    _check_plain(inspection.record)
    is_warned = any("nll is no likelihood" in note for note in inspection.record["notes"])
    assert is_warned == (name == "expert choice")
    num_bytes = sum(len(text.encode()) + 1 for _, text in DOCUMENTS)
    assert inspection.record["text"]["tokens"] == num_bytes
    assert inspection.record["text"]["documents"] == len(DOCUMENTS)
    widths = opened.model.config.moe.routed_widths  # type: ignore[union-attr]
    assert len(tables["experts"]) == len(tables["worth"]) == 2 * len(widths)


def _check_plain(value: Any) -> None:
    """No NaN and no number of NumPy's: whoever reads the record has neither."""
    if isinstance(value, dict):
        for part in value.values():
            _check_plain(part)
    elif isinstance(value, list):
        for part in value:
            _check_plain(part)
    else:
        assert type(value) in (int, float, str, bool, type(None)), type(value)
        assert not isinstance(value, float) or math.isfinite(value)


def test_numbers_are_those_of_traces_read_by_hand() -> None:
    """Tables 3 and 4 of the paper from traces of the same windows."""
    opened = open_small_model()
    tables = look(opened, sample_tokens=0).record["tables"]
    served: dict[tuple[int, int], list[int]] = {}
    units, num_tokens = 0.0, 0
    # Windows do not run on from domain to domain, and here domains alternate.
    for _, text in DOCUMENTS:
        tokens = [*text.encode(), opened.tokenizer.separator]
        for start in range(0, len(tokens), 32):
            traced = hmoe.trace(opened.model, tokens[start : start + 32])
            units += float(traced.width_ZT.sum())
            num_tokens += len(traced.tokens_T)
            for layer, expert, token in zip(traced.layer_N, traced.expert_N, traced.token_N, strict=True):
                served.setdefault((int(layer), int(expert)), []).append(int(traced.tokens_T[token]))
    (overall,) = [row for row in tables["layers"] if row["layer"] is None]
    assert overall["activated_ratio"] == pytest.approx(units / num_tokens / 2 / 25)
    for row in tables["experts"]:
        assert row["tokens"] == len(served.get((row["layer"], row["expert"]), []))


def test_an_interrupted_reading_goes_on_to_the_same_record(tmp_path: Path) -> None:
    opened, documents = open_small_model(), [("a", sentences(i, 60)) for i in range(6)]
    whole = look(opened, documents)

    class Interruption(Exception):
        pass

    def interrupt(task: str, done: int, total: int | None) -> None:
        if task == "reading" and done > 8000:
            raise Interruption

    state = tmp_path / "state.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.analyze.reading_state._PERIOD_SECONDS", 0.0)
        patch.setattr("hmoe.analyze.reading_state._LARGEST_SHARE", 1e9)
        parts = encode_documents(documents, opened.tokenizer)
        text = InspectedText("texts", parts, {"name": "texts"})
        options = InspectionOptions(32, sample_tokens=96)
        with pytest.raises(Interruption):
            inspect_text(opened, text, options, state=state, report=interrupt)
    assert state.is_file()
    passes = []
    with pytest.MonkeyPatch.context() as patch:
        from hmoe.analyze import shared_reading

        trace_windows = shared_reading.trace_windows
        patch.setattr(shared_reading, "trace_windows", lambda *a: passes.append(1) or trace_windows(*a))
        continued = look(opened, documents, state)
    assert (
        len(passes) == -(-whole.record["text"]["tokens"] // 4096) + 1 - 2
    )  # two had been read; the rest is a pass of its own
    assert continued.positions == whole.positions
    _check_equal(continued.record, whole.record)


def _check_equal(value: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            _check_equal(value[key], expected[key])
    elif isinstance(expected, list):
        for part, other in zip(value, expected, strict=True):
            _check_equal(part, other)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert value == expected


def test_chosen_tokens_are_described_and_unknown_ones_refused() -> None:
    tables = look(open_small_model(), chosen=("e", "T"), sample_tokens=0).record["tables"]
    assert {row["text"] for row in tables["chosen_tokens"]} == {"e", "T"}
    with pytest.raises(ConfigError, match=r"chosen = 'nothing': no token type"):
        look(open_small_model(), chosen=("nothing",))


def test_a_limit_keeps_documents_whole() -> None:
    text = look(open_small_model(), most_tokens=1, sample_tokens=0).record["text"]
    assert (text["documents"], text["tokens"]) == (1, len(DOCUMENTS[0][1].encode()) + 1)


def test_short_texts_give_few_numbers_and_no_wrong_ones() -> None:
    for documents in ([("a", "x")], [("a", "one two")], [("a", "a b c d " * 40)]):
        record = look(open_small_model(), documents).record
        _check_plain(record)
        assert set(record["tables"]) == TABLES
        assert "a single document has no intervals" in record["notes"]
        assert all(row["ratio_low"] is None for row in record["tables"]["experts"])


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(DataError, match="the text is empty"):
        look(open_small_model(), [])
    with pytest.raises(ConfigError, match="window = 1: must be at least 2"):
        InspectionOptions(1)


def test_a_dense_model_is_refused() -> None:
    from hmoe.config.recipes import check_model
    from hmoe.data.tokenizer import ByteTokenizer
    from hmoe.model.transformer import build_transformer

    model = build_transformer(check_model(dict(dim=16, layers=2, heads=2, vocab=257, ffn=11)), 0)
    with pytest.raises(ConfigError, match="dense and has no experts"):
        look(OpenedModel(model, ByteTokenizer(), 32, "dense"))


def test_positions_show_texts() -> None:
    inspection = look(open_small_model(), sample_tokens=0)
    whole = "".join(text for _, text in DOCUMENTS)
    assert len({(row["layer"], row["expert"]) for row in inspection.positions}) == 8
    for row in inspection.positions:
        assert row["left"] + row["text"] + row["right"] in whole or "\ufffd" in row["text"]
        assert np.isfinite(row["gate"])


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_see_what_one_sees(size: int, tmp_path: Path) -> None:
    opened = open_small_model()
    options = InspectionOptions(window=32, sample_tokens=96)
    alone = look(opened)

    def inspect(workers: ThreadWorkers) -> Inspection | None:
        # Each reads with a model of its own: `trace` changes modules for a while.
        own = open_small_model()
        text = InspectedText("texts", encode_documents(DOCUMENTS, own.tokenizer), {"name": "texts"})
        state = tmp_path / "state.npz"
        if workers.rank == 0:
            return inspect_text(own, text, options, state=state, workers=workers)
        help_inspecting(own, text, options, state, workers)
        return None

    for _ in range(2):  # the second goes on from what the first has read
        first, *others = work_together(size, inspect)
        assert others == [None] * (size - 1)
        assert isinstance(first, Inspection), first
        assert first.record == alone.record
        assert first.positions == alone.positions


def test_what_the_first_process_refuses_the_others_refuse() -> None:
    options = InspectionOptions(window=32, chosen=("no such token",))

    def inspect(workers: ThreadWorkers) -> object:
        own = open_small_model()
        text = InspectedText("texts", encode_documents(DOCUMENTS, own.tokenizer), {})
        if workers.rank == 0:
            return inspect_text(own, text, options, workers=workers)
        return help_inspecting(own, text, options, None, workers)

    first, second = work_together(2, inspect)
    assert isinstance(first, ConfigError)
    assert isinstance(second, PeerError)
    assert second.exit_code == ConfigError.exit_code
