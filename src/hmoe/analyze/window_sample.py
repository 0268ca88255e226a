"""Some of the windows that were read, for what needs the model again: every expert's output, the loss without one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.positions import hash_numbers
from hmoe.analyze.reading import WindowBatch
from hmoe.analyze.traced_text import Ints


class WindowSample:
    """A uniform sample of whole windows, the same ones however they are read; of short texts all windows.

    Args:
        window: tokens of a window.
        most_tokens: of the sample; at least one window is kept, none where it is 0.

    Attributes:
        tokens: ids (windows, window), -1 behind the end of a shorter window.
        documents: the unit of independence that each token is of (windows, window).
    """

    def __init__(self, window: int, most_tokens: int) -> None:
        self._most = -(-most_tokens // window)
        self._num_windows = 0
        self._rank = np.zeros(0, np.uint64)
        self.tokens = np.zeros((0, window), np.int64)
        self.documents = np.zeros((0, window), np.int64)

    def update(self, batch: WindowBatch) -> None:
        """Take in some windows."""
        num_rows, length = batch.tokens_BL.shape
        places = self._num_windows + np.arange(num_rows)
        self._num_windows += num_rows
        rank = np.concatenate([self._rank, hash_numbers(places)])
        padding = ((0, 0), (0, self.tokens.shape[1] - length))
        tokens = np.pad(batch.tokens_BL, padding, constant_values=-1)
        documents = np.pad(batch.places.document_T.reshape(num_rows, length), padding, constant_values=-1)
        kept = np.sort(np.argsort(rank, kind="stable")[: self._most])
        self._rank = rank[kept]
        self.tokens = np.concatenate([self.tokens, tokens])[kept]
        self.documents = np.concatenate([self.documents, documents])[kept]

    def list_windows(self) -> list[tuple[Ints, Ints]]:
        """Return (tokens, documents) of each window, in the order of the text."""
        lengths = (self.tokens >= 0).sum(1)
        return [
            (tokens[:length], documents[:length])
            for tokens, documents, length in zip(self.tokens, self.documents, lengths, strict=True)
        ]

    def list_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what was kept so far, by name."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return {**arrays, "num_windows": np.array([self._num_windows])}

    def restore_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `list_arrays` gave."""
        for name, value in arrays.items():
            if name in vars(self):
                setattr(self, name, value.copy())
        self._num_windows = int(arrays["num_windows"][0])
