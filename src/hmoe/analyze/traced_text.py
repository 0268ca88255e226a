"""What is handed from reading to summing up: the trace of some tokens, and where in the texts they stand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.model.trace import RoutingTrace

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Row = dict[str, Any]  # of a table: exact values by name, None where there is none


@dataclass(frozen=True)
class TokenPlaces:
    """Where the tokens of a trace stand.

    Attributes:
        document_T: the unit of independence that each is of, counted from 0 and never decreasing: a document, or a
            block of a long one.
        domain_T: number of its domain.
        first_T: whether it is the first of a window, which has no context.
        separator_T: whether it stands between documents.
        word_position_T: tokens of the same word before it.
    """

    document_T: Ints
    domain_T: Ints
    first_T: Bools
    separator_T: Bools
    word_position_T: Ints

    @property
    def ordinary_T(self) -> Bools:
        """Tokens that have a context and a text: all but separators and the first ones of windows."""
        return ~(self.first_T | self.separator_T)


@dataclass(frozen=True)
class TracedText:
    """Some tokens, whole windows, as they were read.

    Attributes:
        trace: what routers did with them.
        places: where they stand.
    """

    trace: RoutingTrace
    places: TokenPlaces
