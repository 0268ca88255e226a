"""Which tokens of a batch are text, and which are padding."""

import torch

from hmoe.errors import ConfigError


def select_real_tokens(
    attention_mask: torch.Tensor | None, x_BLD: torch.Tensor, past: int | torch.Tensor
) -> torch.Tensor | None:
    """Return which tokens of a batch a padding mask keeps, as a boolean (T,); None without a mask.

    Args:
        attention_mask: (B, positions) of transformers; a mask of another shape or kind is attention's alone.
        x_BLD: the batch.
        past: tokens in the cache, which the mask covers too; with a cache of fixed size also tokens to come.

    Raises:
        ConfigError: if the mask covers fewer tokens than there are.
    """
    # A mask with more dimensions says which tokens see each other, and a block mask is no tensor.
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return None
    length, covered = x_BLD.shape[1], attention_mask.shape[1]
    if isinstance(past, int) and covered < past + length:
        raise ConfigError(
            f"attention_mask: covers {covered} tokens, must cover {past + length} (in the cache: {past})"
        )
    position_L = torch.arange(length, device=attention_mask.device) + past
    return attention_mask[:, position_L].expand(len(x_BLD), -1).to(x_BLD.device).bool().flatten()
