"""What the tokens of a pass may look at, as transformers gives it: positions, mask and cache around our attention."""

from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hmoe.hub.configuration import HMoEConfig
from hmoe.model.attention import Attended, Attention


def _eager_attention(
    module: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float, dropout: float = 0.0, **_: Any,
) -> Attended:  # fmt: skip
    """Attend, and also return the weights; softmax is in float32 as everywhere in transformers."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class HuggingFaceContext:
    """Positions, mask and cache as transformers gives them."""

    top_p_T: torch.Tensor | None = None
    real_T: torch.Tensor | None = None
    noise_seed: int | torch.Tensor | None = None

    def __init__(
        self,
        config: HMoEConfig,
        position_ids: torch.Tensor,
        mask: Any,
        cache: Cache | None,
        options: dict[str, Any],
    ) -> None:
        self.config, self.position_ids, self.mask, self.cache, self.options = (
            config,
            position_ids,
            mask,
            cache,
            options,
        )

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return those that were given."""
        return self.position_ids

    def attend(
        self, attention: Attention, q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Attend through transformers' registry of attention functions."""
        if self.cache is not None:
            k_BGLC, v_BGLC = self.cache.update(k_BGLC, v_BGLC, attention.layer)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        dropout = float(self.config.attention_dropout) if attention.training else 0.0
        out, weights = function(
            attention,
            q_BHLC,
            k_BGLC,
            v_BGLC,
            self.mask,
            scaling=attention.head_width**-0.5,
            dropout=dropout,
            **self.options,
        )
        return out, weights
