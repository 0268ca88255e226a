"""Which candidates a model reads in one pass: those of a document together, and several documents."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from hmoe.model.likelihood import Candidate


@dataclass(frozen=True)
class CandidateGroup:
    """Candidates that are scored together: their places among all, and the tokens that reading them takes."""

    places: list[int]
    candidates: list[Candidate]
    tokens: int


def group_candidates(places: list[int], candidates: list[Candidate]) -> list[CandidateGroup]:
    """Group candidates to read them together, or each alone where together would double attention's work."""
    chosen = [candidates[place] for place in places]
    lengths = [len(candidate.tokens) - 1 for candidate in chosen]
    columns = zip(*(candidate.tokens[:-1] for candidate in chosen), strict=False)
    num_shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    # row:  [shared beginning][rest of candidate 0][rest of candidate 1] ...; attention over it is quadratic
    tokens = num_shared + sum(length - num_shared for length in lengths)
    if tokens**2 > 2 * sum(length**2 for length in lengths):
        return [
            CandidateGroup([place], [candidate], length)
            for place, candidate, length in zip(places, chosen, lengths, strict=True)
        ]
    return [CandidateGroup(places, chosen, tokens)]


def batch_groups(groups: list[CandidateGroup], batch_tokens: int) -> Iterable[list[CandidateGroup]]:
    """Make batches of up to `batch_tokens`, longest groups first, so that a lack of memory shows at once."""
    batch, size = list[CandidateGroup](), 0
    for group in sorted(groups, key=lambda group: -group.tokens):
        if batch and size + group.tokens > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += group.tokens
    if batch:
        yield batch
