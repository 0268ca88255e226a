"""A uniform sample of the tokens that were read, of bounded size however long the text is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.analyze.positions import hash_numbers
from hmoe.analyze.traced_text import Floats, Ints, TracedText
from hmoe.errors import ConfigError

Array = npt.NDArray[Any]


class TokenSample:
    """A uniform sample of ordinary tokens: those that have a context and are no separators.

    Tokens are numbered as they are read, and one is kept if a hash of its number is below a threshold, which is halved
    whenever more than `most` are held. Which are kept depends on the text alone, not on how it is cut into windows that
    are handed over together.

    Args:
        num_layers: MoE layers of the model.
        most: tokens that are held at most.

    Attributes:
        num_tokens: tokens read, kept or not.
        share: of the ordinary tokens that is kept, a power of 1/2.
    """

    def __init__(self, num_layers: int, most: int = 100_000) -> None:
        if most < 1:
            raise ConfigError(f"most = {most}: must be at least 1 token", argument="most")
        self.most, self.num_tokens, self._halvings = most, 0, 0
        self._num_held = 0
        none = np.zeros(0, np.int64)
        layers = np.zeros((0, num_layers))
        self._parts: list[dict[str, Array]] = [{
            "place": none, "document": none, "type": none, "nll": none.astype(np.float64), "word_position": none,
            "units": layers.astype(np.int32), "num_experts": layers.astype(np.int16),
        }]  # fmt: skip

    @property
    def share(self) -> float:
        """Share of the ordinary tokens that is kept."""
        return 0.5**self._halvings

    def __len__(self) -> int:
        return self._num_held

    def update(self, text: TracedText) -> None:
        """Take in the tokens of some windows."""
        trace, places = text.trace, text.places
        place_T = self.num_tokens + np.arange(len(places.document_T))
        kept_T = places.ordinary_T & self._keeps(place_T)
        self.num_tokens += len(place_T)
        columns = {
            "place": place_T, "document": places.document_T, "type": trace.tokens_T.numpy(),
            "nll": trace.nll_T.numpy(), "word_position": places.word_position_T,
            "units": trace.width_ZT.numpy().T, "num_experts": trace.num_experts_ZT.numpy().T,
        }  # fmt: skip
        self._parts.append(
            {name: column[kept_T].astype(self._parts[0][name].dtype) for name, column in columns.items()}
        )
        self._num_held += int(kept_T.sum())
        while self._num_held > self.most:
            self._halvings += 1
            self._parts = [self._drop(self._merge())]
            self._num_held = len(self._parts[0]["place"])

    # What is held, in the order of the text.

    @property
    def document_T(self) -> Ints:
        """Unit of independence of each token."""
        return self._merge()["document"]

    @property
    def type_T(self) -> Ints:
        """Token type of each token."""
        return self._merge()["type"]

    @property
    def nll_T(self) -> Floats:
        """Negative log-likelihood of each token in nats, NaN where it is unknown."""
        return self._merge()["nll"]

    @property
    def word_position_T(self) -> Ints:
        """Tokens of the same word before each token."""
        return self._merge()["word_position"]

    @property
    def units_ZT(self) -> Ints:
        """Hidden units that each token activated, by layer."""
        return self._merge()["units"].T

    @property
    def num_experts_ZT(self) -> Ints:
        """Experts that served each token, by layer."""
        return self._merge()["num_experts"].T

    # What was read so far, for a file from which another process goes on.

    def list_arrays(self) -> dict[str, Array]:
        """Return all that is held, by name."""
        return {**self._merge(), "position": np.array([self.most, self.num_tokens, self._halvings])}

    def restore_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Take over what `list_arrays` gave."""
        self._parts = [{name: arrays[name].copy() for name in self._parts[0]}]
        self._num_held = len(arrays["place"])
        self.most, self.num_tokens, self._halvings = map(int, arrays["position"])

    def _merge(self) -> dict[str, Array]:
        """Return one array for each column."""
        if len(self._parts) > 1:
            self._parts = [
                {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
            ]
        return self._parts[0]

    def _keeps(self, place_T: Ints) -> npt.NDArray[np.bool_]:
        if not self._halvings:
            return np.ones(len(place_T), np.bool_)
        return np.asarray(hash_numbers(place_T) < np.uint64(1 << (64 - self._halvings)))

    def _drop(self, columns: dict[str, Array]) -> dict[str, Array]:
        kept_T = self._keeps(columns["place"])
        return {name: column[kept_T] for name, column in columns.items()}
