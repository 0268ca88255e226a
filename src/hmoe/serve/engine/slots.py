"""Keys and values of all running sequences in one block of memory, and what the tokens of a step see."""

from collections.abc import Sequence as Series
from dataclasses import dataclass

import torch

from hmoe.model.attention import Attended, Attention, scaled_dot_product
from hmoe.model.transformer import Transformer


class KeyValueSlots:
    """Holds one slot of keys and values per sequence, `capacity` positions long.

    Attributes:
        kv: (layers, 2, slots, G, capacity, C), keys before values.
    """

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        config = model.config
        shape = (config.layers, 2, slots, config.num_kv_heads, capacity, config.head_width)
        # Zeroed, since a masked position still enters attention, multiplied by 0: whatever is in fresh memory
        # may be NaN.
        self.kv = torch.zeros(shape, dtype=model.embed.weight.dtype, device=model.embed.weight.device)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another."""
        if source != target:
            self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def clear(self, slot: int) -> None:
        """Set a slot to zero, so that values that are not finite cannot reach its next sequence."""
        self.kv[:, :, slot].zero_()


@dataclass(frozen=True)
class SequencePart:
    """Tokens of one sequence in a step: the `tokens` from position `start` on, of the sequence in `slot`."""

    slot: int
    start: int
    tokens: Series[int]
    top_p: float | None = None


class StepContext:
    """Shows the model one step of many sequences, whose tokens are laid end to end in one row.

    The first `decoding` parts are one token each, of slots 0, 1, ..., and are attended together.
    """

    # tokens: [new token of slot 0][of slot 1] ... [chunk of a prompt][chunk of another] ...
    # Attention is computed once for all new tokens, which have one query each, then once for every chunk.

    noise_seed: int | None = None  # routers add no noise
    real_T: torch.Tensor | None = None  # no token is padding

    def __init__(
        self, slots: KeyValueSlots, parts: Series[SequencePart], decoding: int, top_p: float | None
    ) -> None:
        self._kv, device = slots.kv, slots.kv.device
        self._decoding, self._chunks = decoding, parts[decoding:]
        self._begins: list[int] = []  # where each chunk begins in the row of tokens
        self._masks: list[torch.Tensor | None] = []  # of each chunk (its tokens, positions up to its end)
        positions = [part.start for part in parts[:decoding]]
        begin = decoding
        for part in self._chunks:
            end = part.start + len(part.tokens)
            positions += range(part.start, end)
            self._begins.append(begin)
            begin += len(part.tokens)
            # A prompt's first chunk is causal, which needs no mask in memory; a single token sees all.
            needs_mask = part.start and len(part.tokens) > 1
            shape = (len(part.tokens), end)
            mask = torch.ones(shape, dtype=torch.bool, device=device).tril(part.start) if needs_mask else None
            self._masks.append(mask)
        self._positions_BL = torch.tensor([positions], device=device)
        self.tokens_BL = torch.tensor([[token for part in parts for token in part.tokens]], device=device)
        self.top_p_T: torch.Tensor | None = None
        if top_p is not None:
            thresholds = [top_p if part.top_p is None else part.top_p for part in parts for _ in part.tokens]
            self.top_p_T = torch.tensor(thresholds, device=device)
        if decoding:
            self._prepare_decoding(decoding)

    def _prepare_decoding(self, decoding: int) -> None:
        """Find where the new tokens are stored, and which positions each of them sees."""
        self._position_B = self._positions_BL[0, :decoding]
        self._slot_B = torch.arange(decoding, device=self._position_B.device)
        # Not the whole capacity is attended to: as far as the longest sequence goes is enough for all.
        self._longest = int(self._position_B.max()) + 1
        self._mask: torch.Tensor | None = None
        # Sequences of one length need no mask, and attention without one is faster.
        if bool((self._position_B != self._longest - 1).any()):
            position_L = torch.arange(self._longest, device=self._position_B.device)
            sees_BL = position_L <= self._position_B[:, None]
            self._mask = torch.zeros(sees_BL.shape, dtype=self._kv.dtype, device=self._kv.device)
            # (B, 1, 1, L): the same for every head and for the one query of a sequence.
            self._mask = self._mask.masked_fill_(~sees_BL, -torch.inf)[:, None, None]

    def positions(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return each token's position in its own sequence."""
        return self._positions_BL

    def attend(
        self, attention: Attention, q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor
    ) -> Attended:
        """Store keys and values, then attend: all decoding sequences in one call, each chunk in its own."""
        kv, decoding, outputs = self._kv[attention.layer], self._decoding, []
        if decoding:
            # Stored before attending: a token sees itself.
            kv[0, self._slot_B, :, self._position_B] = k_BGLC[0, :, :decoding].transpose(0, 1)
            kv[1, self._slot_B, :, self._position_B] = v_BGLC[0, :, :decoding].transpose(0, 1)
            # In the row they are positions of one sequence; here they become sequences of one position.
            q = q_BHLC[0, :, :decoding].transpose(0, 1)[:, :, None]
            k, v = kv[:, :decoding, :, : self._longest].unbind(0)  # views: slots 0, 1, ... lie side by side
            outputs.append(scaled_dot_product(q, k, v, self._mask, False).transpose(0, 1))
        for part, begin, mask in zip(self._chunks, self._begins, self._masks, strict=True):
            end = begin + len(part.tokens)  # in the row of tokens
            stop = part.start + len(part.tokens)  # in its own sequence
            kv[0, part.slot, :, part.start : stop] = k_BGLC[0, :, begin:end]
            kv[1, part.slot, :, part.start : stop] = v_BGLC[0, :, begin:end]
            k, v = kv[:, part.slot : part.slot + 1, :, :stop].unbind(0)
            outputs.append(scaled_dot_product(q_BHLC[:, :, begin:end], k, v, mask, not part.start))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None
