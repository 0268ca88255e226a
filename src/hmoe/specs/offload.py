"""What is known of experts that lie elsewhere before any is made: how they are stored, and what memory they need."""

from collections.abc import Sequence

STORED_KINDS = ("weights", "gradients", "exp_avg", "exp_avg_sq")  # of each matrix of an expert
CHUNK_NUMBERS = 1 << 20  # of a matrix that are updated at once
MOST_WAITING_GRADIENTS = 2  # sets of an expert's gradients that are made and not yet written


def count_fewest_bytes(widths: Sequence[Sequence[int]], dim: int, itemsize: int) -> int:
    """Return the bytes of the two widest experts of all layers: one that is computed, and one that comes meanwhile.

    Args:
        widths: hidden units of the experts of each layer.
        dim: width of the model.
        itemsize: bytes of a number.
    """
    return 3 * dim * itemsize * sum(sorted(width for row in widths for width in row)[-2:])
