"""What the router's operator and its Triton kernels agree on: the rule of choosing, the outputs, the size of blocks."""

from typing import NamedTuple

import torch


class Rule(NamedTuple):
    """How a plain router chooses experts and weighs them.

    Attributes:
        k: experts per token; 0: the largest until their probabilities reach p.
        p: the probability to reach where k is 0; otherwise not used.
        sigmoid: scores are sigmoids of the logits, else their softmax.
        renormalize: gates are divided by their sum.
        scale: multiplies gates.
    """

    k: int
    p: float
    sigmoid: bool
    renormalize: bool
    scale: float


# The fields of `ExpertSelection`, then where each block of tokens begins within an expert: (experts, blocks).
SelectionOutputs = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]


def choose_block_size(num_experts: int) -> int:
    """Return the tokens that a program holds: with all experts of each they must fit into registers."""
    padded = max(2, 1 << (num_experts - 1).bit_length())
    return max(1, min(64, 512 // padded))
