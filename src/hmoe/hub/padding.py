"""Which tokens of a batch a padding mask keeps."""

import torch

from hmoe.errors import ConfigError


def real_tokens(
    attention_mask: torch.Tensor | None, x_BLD: torch.Tensor, past: int | torch.Tensor
) -> torch.Tensor | None:
    """Which tokens (B*L) a padding mask keeps; None without one.

    The mask covers the tokens before, which are in the cache, too, and with a cache of fixed size may cover those to come.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return None
    length, covered = x_BLD.shape[1], attention_mask.shape[1]
    if isinstance(past, int) and covered < past + length:
        raise ConfigError(f"attention_mask: covers {covered} tokens, must cover {past + length} (in the cache: {past})")
    place_L = torch.arange(length, device=attention_mask.device) + past
    return attention_mask[:, place_L].expand(len(x_BLD), -1).to(x_BLD.device).bool().flatten()
