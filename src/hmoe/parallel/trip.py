"""Which tokens of a batch travel to which process of an expert-parallel group, and in which order they are there.

    sent by a process:    rows   [to rank 0: its tokens ...][to rank 1: ...]
                          pairs  [to rank 0: [its first part: pairs by token][its second part] ...][to rank 1: ...]
    received by one:      the same blocks, from rank 0, from rank 1, ...; then sorted by part for the kernel

A row is a token that some expert of the other process serves: it travels once, however many of them do. In exact mode
it is a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist

from hmoe.model.routing import Routing
from hmoe.model.waiting import get_constant
from hmoe.parallel.exchange import Splits, exchange_rows
from hmoe.specs.placement import Placement


class PartTable:
    """The parts of a placement in the order in which pairs travel: by process, then by expert and unit.

    Attributes:
        experts: expert of each part.
        ranks: process of each.
        own: the parts of this process, in this order.
        widths: hidden units of each of those.
        message_order, message_splits: how what processes tell each other of sizes is laid out, and how long it is.
    """

    def __init__(self, placement: Placement, rank: int) -> None:
        self.placement, self.rank = placement, rank
        parts = [part for each in range(placement.num_ranks) for part in placement.list_parts(each)]
        self.experts = [part.expert for part in parts]
        self.ranks = [part.rank for part in parts]
        self.own = placement.list_parts(rank)
        self.widths = tuple(part.num_units for part in self.own)
        num_of_rank = [self.ranks.count(each) for each in range(placement.num_ranks)]
        # A message to a process is its rows, then the pairs of its parts: where each number stands among
        # [rows to all][pairs of all parts].
        begins = [0, *accumulate(num_of_rank)]
        self.message_order = [
            place
            for each in range(placement.num_ranks)
            for place in (
                each,
                *range(placement.num_ranks + begins[each], placement.num_ranks + begins[each + 1]),
            )
        ]
        self.message_splits = Splits([1 + n for n in num_of_rank], [1 + len(self.own)] * placement.num_ranks)


@dataclass(frozen=True)
class Trip:
    """What one process sends for a batch of tokens, and what comes to it.

    Attributes:
        rows, pairs: how many of each go to and come from each process.
        row_token: token of each row that is sent.
        sent_pair: place in the routing of each pair that is sent.
        sent_row: row of each such pair, counted from the first one that goes to its process.
        num_received: pairs that came, by source and part of this process.
        begins, counts: place of the first pair of each expert in the routing, and how many it has; of experts with
            hidden units.
    """

    rows: Splits
    pairs: Splits
    row_token: torch.Tensor
    sent_pair: torch.Tensor
    sent_row: torch.Tensor
    num_received: list[list[int]]
    begins: list[int]
    counts: list[int]

    @property
    def num_pairs(self) -> int:
        """Pairs of experts with hidden units; what comes after them in the routing does not travel."""
        return sum(self.counts)

    def order_received(self, device: torch.device) -> torch.Tensor:
        """Return the places of the pairs that came, sorted by part of this process, then by source."""
        firsts = [[first, *accumulate(counts, initial=first)][1:] for first, counts in self._list_sources()]
        num_parts = len(self.num_received[0])
        starts = [firsts[source][part] for part in range(num_parts) for source in range(len(firsts))]
        sizes = [counts[part] for part in range(num_parts) for counts in self.num_received]
        return join_ranges(starts, sizes, device)

    def _list_sources(self) -> list[tuple[int, list[int]]]:
        """Return where the pairs of each source begin, and how many it sent for each part."""
        firsts = accumulate(self.pairs.received, initial=0)
        return list(zip(firsts, self.num_received, strict=False))


def plan_trip(
    routing: Routing, table: PartTable, group: dist.ProcessGroup, num_tokens: int, by_pair: bool
) -> Trip:
    """Tell the other processes how much comes, and return who sends what; the host waits for the device once.

    Args:
        routing: of this process's tokens.
        table: of the layer's parts.
        group: the processes among which its experts are placed.
        num_tokens: of this process.
        by_pair: whether each pair has a row of its own.
    """
    placement, device = table.placement, routing.token_N.device
    num_ranks = placement.num_ranks
    count_P = routing.num_tokens_E[get_constant(tuple(table.experts), torch.int64, device)]
    needs_RT = None if by_pair else _find_needs(routing, table, num_tokens)
    rows_R = routing.num_tokens_E.new_zeros(num_ranks) if needs_RT is None else needs_RT.sum(1)
    message = torch.cat([rows_R, count_P])[get_constant(tuple(table.message_order), torch.int64, device)]
    answer = exchange_rows(message, table.message_splits, group)
    sizes = read_sizes(routing.num_tokens_E, message, answer)
    counts = sizes[0][: len(placement.widths)]
    sent, received = (
        _cut(part, lengths) for part, lengths in zip(sizes[1:], table.message_splits, strict=True)
    )
    pairs = Splits([sum(numbers[1:]) for numbers in sent], [sum(numbers[1:]) for numbers in received])
    rows = (
        pairs if by_pair else Splits([numbers[0] for numbers in sent], [numbers[0] for numbers in received])
    )
    begins = list(accumulate(counts, initial=0))
    of_parts = [counts[expert] for expert in table.experts]
    sent_pair = join_ranges([begins[expert] for expert in table.experts], of_parts, device)
    if needs_RT is None:
        row_token = routing.token_N[sent_pair]
        sent_row = join_ranges([0] * num_ranks, pairs.sent, device)
    else:
        needed = needs_RT.flatten()
        row_token = needed.nonzero_static(size=sum(rows.sent))[:, 0] % max(num_tokens, 1)
        # The row of a token among all that are sent, less those that go to processes before.
        place_RT = (needed.cumsum(0) - 1).view(num_ranks, num_tokens) - (rows_R.cumsum(0) - rows_R)[:, None]
        rank_S = repeat_each(table.ranks, of_parts, device)
        sent_row = place_RT[rank_S, routing.token_N[sent_pair]]
    num_received = [numbers[1:] for numbers in received]
    return Trip(rows, pairs, row_token, sent_pair, sent_row, num_received, begins, counts)


def read_sizes(*tensors: torch.Tensor) -> list[list[int]]:
    """Return the integers of some vectors: the one place of a dispatch where the host waits for the device."""
    numbers: list[int] = torch.cat(tensors).tolist()
    return _cut(numbers, [len(tensor) for tensor in tensors])


def _cut(numbers: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    ends = list(accumulate(lengths))
    return [list(numbers[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _find_needs(routing: Routing, table: PartTable, num_tokens: int) -> torch.Tensor:
    """Return which process a token travels to, boolean (R, T)."""
    device, num_experts = routing.token_N.device, len(routing.num_tokens_E)
    num_ranks = table.placement.num_ranks
    is_on = [0.0] * (num_ranks * num_experts)
    for expert, rank in zip(table.experts, table.ranks, strict=True):
        is_on[rank * num_experts + expert] = 1.0
    chosen_TE = torch.zeros(num_tokens, num_experts, device=device)
    # Pairs beyond the counts are of token 0, which has not chosen their expert.
    real_N = torch.arange(len(routing.token_N), device=device) < routing.num_tokens_E.sum()
    chosen_TE.index_put_((routing.token_N, routing.expert_N), real_N.float(), accumulate=True)
    is_on_RE = get_constant(tuple(is_on), torch.float32, device).view(num_ranks, num_experts)
    return is_on_RE @ chosen_TE.T > 0


def move_integers(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return integers on a device, without waiting for what it still has to do."""
    return torch.tensor(list(values), dtype=torch.int64).to(device, non_blocking=True)


def repeat_each(values: Sequence[int], times: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return each value as often as it is said."""
    of_device = [move_integers(each, device) for each in (values, times)]
    return torch.repeat_interleave(*of_device, output_size=sum(times))


def join_ranges(starts: Sequence[int], sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the integers of ranges, one range after another."""
    before = list(accumulate(sizes, initial=0))[:-1]
    shifts = [start - place for start, place in zip(starts, before, strict=True)]
    return torch.arange(sum(sizes), device=device) + repeat_each(shifts, sizes, device)
