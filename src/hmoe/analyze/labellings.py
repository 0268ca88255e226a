"""Counts of tokens and pairs by the classes of a labelling: domains of documents, kinds of token types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hmoe.analyze.tally import Table, Tally
from hmoe.errors import ConfigError

DOMAIN = "domain"


@dataclass(frozen=True)
class Labelling:
    """Counts of tokens and pairs by the classes of a labelling.

    Attributes:
        name: of the labelling.
        classes: their names.
        tokens: by fold and class (F, classes).
        pairs: by fold and class (F, classes, Z, E).
        num_experts: tokens by class and by how many experts served them (classes, Z, E + 1).
    """

    name: str
    classes: Sequence[str]
    tokens: Table
    pairs: Table
    num_experts: Table


def list_labellings(tally: Tally, class_names: Mapping[str, Sequence[str]]) -> list[Labelling]:
    """Return domains and the labellings that have classes.

    Raises:
        ConfigError: if a labelling has no names, or too few.
    """
    labellings = []
    if tally.domain_tokens:
        names = [*tally.domains, *map(str, range(len(tally.domains), len(tally.domain_tokens)))]
        tokens, pairs = np.stack(tally.domain_tokens, 1), np.stack(tally.domain_pairs, 1)
        labellings.append(Labelling(DOMAIN, names, tokens, pairs, np.stack(tally.domain_num_experts)))
    for name, tokens in tally.label_tokens.items():
        classes = class_names.get(name, ())
        num_classes = tokens.shape[1]
        if len(classes) < num_classes:
            raise ConfigError(
                f"class_names of {name!r}: {len(classes)} names, must be at least {num_classes}, "
                "the classes of the labelling"
            )
        if num_classes:
            labellings.append(
                Labelling(
                    name, classes, tokens, tally.label_pairs[name], _count_by_class(tally, name, num_classes)
                )
            )
    return labellings


def _count_by_class(tally: Tally, name: str, num_classes: int) -> Table:
    """Return tokens by class and by how many experts served them (classes, Z, E + 1)."""
    class_V = tally.labels[name]
    counts = np.zeros((num_classes, *tally.num_experts.shape), np.int64)
    for count, types_ZV in tally.types_by_count.items():
        for label_class in range(num_classes):
            counts[label_class, :, count] = types_ZV[:, class_V == label_class].sum(1, dtype=np.int64)
    return counts
