"""Keys and values of every running sequence in one block of memory, and what the tokens of one step look at."""

from collections.abc import Sequence as Series
from dataclasses import dataclass

import torch

from hmoe.model.attention import Attended, Attention, scaled_dot_product
from hmoe.model.transformer import Transformer


class Slots:
    """One slot of keys and values per sequence, `capacity` positions long.

    Zeroed, and kept finite by `clear`: a masked position still enters attention, multiplied by 0.
    """

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        config = model.config
        shape = (config.layers, 2, slots, config.num_kv_heads, capacity, config.head_width)
        self.kv = torch.zeros(shape, dtype=model.embed.weight.dtype, device=model.embed.weight.device)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot."""
        if source != target:
            self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def clear(self, slot: int) -> None:
        """Forget values that are not finite."""
        self.kv[:, :, slot].zero_()


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence in a step: the `tokens` from position `start` on, of the sequence in `slot`."""

    slot: int
    start: int
    tokens: Series[int]
    top_p: float | None = None


class Step:
    """A `Context`: the first `decoding` parts are one token each, of slots 0, 1, ..., and are attended together."""

    noise_seed: int | None = None
    real_T: torch.Tensor | None = None

    def __init__(self, slots: Slots, parts: Series[Part], decoding: int, top_p: float | None) -> None:
        self._kv, device = slots.kv, slots.kv.device
        self._decoding, self._chunks, begin = decoding, parts[decoding:], decoding
        positions = [part.start for part in parts[:decoding]]
        self._masks: list[torch.Tensor | None] = []
        self._begins: list[int] = []
        for part in self._chunks:
            stop = part.start + len(part.tokens)
            positions += range(part.start, stop)
            self._begins.append(begin)
            begin += len(part.tokens)
            several = part.start and len(part.tokens) > 1
            shape = (len(part.tokens), stop)
            self._masks.append(torch.ones(shape, dtype=torch.bool, device=device).tril(part.start) if several else None)
        self._positions_BL = torch.tensor([positions], device=device)
        self.tokens_BL = torch.tensor([[token for part in parts for token in part.tokens]], device=device)
        self.top_p_T: torch.Tensor | None = None
        if top_p is not None:
            asked = [top_p if part.top_p is None else part.top_p for part in parts for _ in part.tokens]
            self.top_p_T = torch.tensor(asked, device=device)
        if decoding:
            self._see_decoding(decoding)

    def _see_decoding(self, decoding: int) -> None:
        """Where the new tokens are stored, and which positions each of them sees."""
        self._place_B = self._positions_BL[0, :decoding]
        self._slot_B = torch.arange(decoding, device=self._place_B.device)
        self._longest = int(self._place_B.max()) + 1
        self._mask: torch.Tensor | None = None
        if bool((self._place_B != self._longest - 1).any()):
            seen_BL = torch.arange(self._longest, device=self._place_B.device)[None] <= self._place_B[:, None]
            self._mask = torch.zeros(seen_BL.shape, dtype=self._kv.dtype, device=self._kv.device)
            self._mask = self._mask.masked_fill_(~seen_BL, -torch.inf)[:, None, None]

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Each token's place in its own sequence."""
        return self._positions_BL

    def attend(
        self, attention: Attention, q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Store keys and values; all decoding sequences in one call, then every chunk of a prompt."""
        kv, n, outs = self._kv[attention.layer], self._decoding, []
        if n:
            kv[0, self._slot_B, :, self._place_B] = k_BGLC[0, :, :n].transpose(0, 1)
            kv[1, self._slot_B, :, self._place_B] = v_BGLC[0, :, :n].transpose(0, 1)
            q = q_BHLC[0, :, :n].transpose(0, 1)[:, :, None]
            k, v = kv[:, :n, :, : self._longest].unbind(0)
            outs.append(scaled_dot_product(q, k, v, self._mask, False).transpose(0, 1))
        for part, begin, mask in zip(self._chunks, self._begins, self._masks, strict=True):
            end, stop = begin + len(part.tokens), part.start + len(part.tokens)
            kv[0, part.slot, :, part.start : stop] = k_BGLC[0, :, begin:end]
            kv[1, part.slot, :, part.start : stop] = v_BGLC[0, :, begin:end]
            k, v = kv[:, part.slot : part.slot + 1, :, :stop].unbind(0)
            outs.append(scaled_dot_product(q_BHLC[:, :, begin:end], k, v, mask, not part.start))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1), None
