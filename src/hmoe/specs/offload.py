"""How much memory experts need that come one after another."""

from collections.abc import Sequence


def count_fewest_bytes(widths: Sequence[Sequence[int]], dim: int, itemsize: int) -> int:
    """Return the bytes of the two widest experts of all layers: one that is computed, and one that comes meanwhile.

    Args:
        widths: hidden units of the experts of each layer.
        dim: width of the model.
        itemsize: bytes of a number.
    """
    return 3 * dim * itemsize * sum(sorted(width for row in widths for width in row)[-2:])
