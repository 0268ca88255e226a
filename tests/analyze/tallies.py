"""Tallies of tokens that tests draw themselves, summed by loops over documents."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hmoe.analyze.tally import Tally

Array = npt.NDArray[np.int64]


def tally_tokens(
    document_T: Array,
    type_T: Array,
    experts_TZE: npt.NDArray[np.bool_],
    widths: tuple[int, ...] = (),
    vocab: int = 0,
    labels: Mapping[str, Array] | None = None,
) -> Tally:
    """Return the sums of tokens, all of them ordinary ones, that are given one by one."""
    _, num_layers, num_experts = experts_TZE.shape
    tally = Tally(
        widths or tuple(range(8, 8 * num_experts + 1, 8)),
        tuple(range(num_layers)),
        vocab or int(type_T.max()) + 1,
        labels or {},
    )
    tally.domains = ["all"]
    tally.domain_tokens = [tally.tokens_by_fold]
    tally.domain_pairs = [tally.pairs_by_fold]
    for count_TZ, layer in zip(experts_TZE.sum(2).T, range(num_layers), strict=True):
        tally.num_experts[layer] = np.bincount(count_TZ, minlength=num_experts + 1)
    tally.domain_num_experts = [tally.num_experts]
    tally.num_documents = len(np.unique(document_T))
    for document in np.unique(document_T):
        own = document_T == document
        fold = document % tally.num_folds
        types = np.bincount(type_T[own], minlength=tally.vocab)
        pairs = np.zeros(tally.pairs.shape, np.int64)
        for token_type, experts_ZE in zip(type_T[own], experts_TZE[own], strict=True):
            pairs[:, :, token_type] += experts_ZE
            for layer, count in enumerate(experts_ZE.sum(1).tolist()):
                if count not in tally.types_by_count:
                    tally.types_by_count[count] = np.zeros((num_layers, tally.vocab), np.int32)
                tally.types_by_count[count][layer, token_type] += 1
        tally.tokens_by_fold[fold] += own.sum()
        tally.types_by_fold[fold] += types
        tally.pairs_by_fold[fold] += pairs.sum(-1)
        tally.pairs += pairs
        cells = np.arange(pairs.size)
        tally.pair_squares.add(cells, np.square(pairs).ravel())
        tally.pair_products.add(cells, (pairs * types).ravel())
        tally.type_squares += np.square(types)
        for name, class_V in tally.labels.items():
            for label_class in range(int(class_V.max()) + 1):
                tally.label_tokens[name][fold, label_class] += types[class_V == label_class].sum()
                tally.label_pairs[name][fold, label_class] += pairs[:, :, class_V == label_class].sum(-1)
    return tally
