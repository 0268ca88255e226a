"""How much memory the sums over traced tokens take, and into how many folds they are divided for that."""

from collections.abc import Mapping

from hmoe.config.available_memory import read_available_bytes
from hmoe.errors import ConfigError
from hmoe.units import format_bytes

MAX_FOLDS, MIN_FOLDS = 32, 8
_MOST_BYTES = 512 << 20  # of the tables by fold and token type


def choose_num_folds(num_layers: int, vocab: int) -> int:
    """Return as many folds as the tables by token type have room for."""
    bytes_of_fold = 8 * vocab * (num_layers + 3)
    return min(max(_MOST_BYTES // bytes_of_fold, MIN_FOLDS), MAX_FOLDS)


def estimate_tally_bytes(
    num_layers: int, num_experts: int, vocab: int, label_sizes: Mapping[str, int]
) -> int:
    """Return the bytes of a `Tally` before anything is read.

    Reading adds little for each domain, and for each number of experts that tokens have 4 bytes by layer and type.

    Args:
        num_layers, num_experts, vocab: MoE layers, experts of each and token types.
        label_sizes: classes of each labelling.
    """
    folds, cells = choose_num_folds(num_layers, vocab), num_layers * num_experts
    by_fold = 1 + 2 * cells + (3 + num_layers) * vocab + sum(label_sizes.values()) * (1 + cells)
    by_type = (1 + num_layers) * vocab + num_layers * (num_experts + 1)
    return 8 * (folds * by_fold + by_type) + 12 * cells * vocab


def check_tally_memory(num_layers: int, num_experts: int, vocab: int, label_sizes: Mapping[str, int]) -> None:
    """Raise ConfigError if a `Tally` would need more memory than is available; arguments as for its estimate."""
    needed = estimate_tally_bytes(num_layers, num_experts, vocab, label_sizes)
    available = read_available_bytes()
    if available is not None and needed > available:
        raise ConfigError(
            f"tables of {num_layers} MoE layers x {num_experts} experts x {vocab:,} token types need "
            f"{format_bytes(needed)} of memory, {format_bytes(available)} are available beside the model: close other "
            "programs, use a machine with more, or look at a single text token by token, which needs no tables"
        )
