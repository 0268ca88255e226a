"""Windows of a text, traced by several processes in turn, and summed up by the first of them in the text's order."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmoe.analyze.reading import WindowBatch, trace_windows
from hmoe.analyze.reading_state import ReadingState
from hmoe.analyze.traced_text import TracedText
from hmoe.errors import DataError
from hmoe.model.transformer import Transformer
from hmoe.parallel.workers import Workers

_TENSORS = ("tokens_T", "layer_N", "token_N", "expert_N", "gate_N", "probs_ZTE", "nll_T", "width_ZT")


def trace_together(
    model: Transformer, batches: Iterator[WindowBatch], workers: Workers
) -> Iterator[tuple[WindowBatch, TracedText | None]]:
    """Yield each batch with what the model did with it; processes but the first get None in its place.

    Every process traces one batch of as many as there are processes, so the first holds as many traces at once.
    """
    while turn := list(itertools.islice(batches, workers.size)):
        with workers.together():
            own = trace_windows(model, turn[workers.rank]) if workers.rank < len(turn) else None
        if workers.size == 1:
            yield turn[0], own
            continue
        tensors = [] if own is None else [getattr(own.trace, name) for name in _TENSORS]
        traces: list[TracedText | None] = [None] * len(turn)
        for place, sent in enumerate(workers.gather_tensors(tensors)[: len(turn)]):
            assert own is not None  # the first process has a batch in every turn
            values: dict[str, Any] = dict(zip(_TENSORS, sent, strict=True))
            traces[place] = TracedText(dataclasses.replace(own.trace, **values), turn[place].places)
        yield from zip(turn, traces, strict=True)


def restore_together(stored: ReadingState, path: Path | None, workers: Workers) -> int:
    """Take over what an interrupted reading left, in all processes, and return the passes that it had done.

    Raises:
        DataError: if they do not see the same file.
    """
    with workers.together():
        num_passes = stored.restore()[0]
    passes = workers.gather_values(
        num_passes
    )  # so that no process reads the file after the first goes on writing it
    if 0 in passes:  # a part of it is damaged, which not all of them read
        stored.reset()
        return 0
    with workers.together():
        if len(set(passes)) > 1:
            raise DataError(f"{path}: processes do not see the same file; must be on storage that all share")
    return num_passes
