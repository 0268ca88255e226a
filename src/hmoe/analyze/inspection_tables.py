"""The tables of an inspection: what sums over a text tell, and what the model tells when it reads a sample again."""

from collections.abc import Callable, Mapping
from typing import Any

from hmoe.analyze.activation import measure_activation
from hmoe.analyze.difficulty import measure_difficulty
from hmoe.analyze.inspection_record import TextReading
from hmoe.analyze.redundancy import measure_redundancy
from hmoe.analyze.similarity import measure_similarity, measure_size_test
from hmoe.analyze.specialisation import measure_specialisation
from hmoe.analyze.tally import Tally
from hmoe.analyze.token_types import CLASS_NAMES, TokenTypes
from hmoe.analyze.top_tokens import measure_top_tokens
from hmoe.analyze.traced_text import Row
from hmoe.analyze.worth import measure_worth
from hmoe.model.transformer import Transformer
from hmoe.parallel.workers import Workers

_NUM_CHOSEN = 6  # frequent and rare token types that are described where none are chosen

# Called with what is done, how much of it, and how much there is.
Report = Callable[[str, int, int | None], None]


def measure_sums(
    reading: TextReading, types: TokenTypes, senses_V: Any, num_top: int, embedding: Any
) -> dict[str, list[Row]]:
    """Return the tables that sums over tokens give."""
    tally = reading.tally
    embedding_VD = embedding.detach().float().cpu().numpy()
    return {
        **measure_activation(tally),
        **measure_similarity(tally, embedding_VD),
        **measure_top_tokens(tally, types.texts, num_top),
        **measure_specialisation(tally, CLASS_NAMES),
        **measure_difficulty(tally, reading.tokens, types.lengths, senses_V),
    }


def measure_sample(
    model: Transformer,
    reading: TextReading,
    sample_tokens: int,
    tables: Mapping[str, list[Row]],
    report: Report,
    workers: Workers,
) -> dict[str, list[Row]]:
    """Return the tables for which the model reads a sample of the windows again."""
    windows = reading.windows.list_windows()
    redundancy = measure_redundancy(
        model,
        windows,
        lambda done, total: report("comparing experts' outputs", done, total),
        most_tokens=sample_tokens,
    )
    worth = measure_worth(
        model,
        windows,
        lambda done, total: report("leaving out one expert after another", done, total),
        workers,
    )
    by_outputs = measure_size_test(redundancy["redundancy"], "output_distance")
    return {**redundancy, **worth, "size_tests": [*tables["size_tests"], *by_outputs]}


def choose_described_tokens(tally: Tally) -> list[int]:
    """Return frequent token types, and the rarest ones that occur often enough to be described."""
    count_V = tally.types_by_fold.sum(0)
    ordered = [int(token) for token in count_V.argsort(kind="stable")[::-1] if count_V[token] >= 20]
    return list(dict.fromkeys([*ordered[:_NUM_CHOSEN], *ordered[-_NUM_CHOSEN:]]))
