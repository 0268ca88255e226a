"""Expert parallelism with the bits of one process: tokens of each process are computed by themselves, pair by pair.

What an expert gives for a pair travels back without its gate, and a token's pairs are added up where one process would
add them, in the order of the experts. All products are those of `hmoe.kernels.exact`.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from hmoe.kernels.choice import get_backend
from hmoe.kernels.exact import sum_pairs
from hmoe.kernels.layer import Layer, Saved, count_room
from hmoe.model.routing import Routing
from hmoe.parallel.exchange import Splits, exchange_rows
from hmoe.parallel.expert_rows import WEIGHTS, HeldExperts, find_replica_pairs
from hmoe.parallel.fixed_order import TreeSum
from hmoe.parallel.trip import Trip, move_integers

_BACKEND = "exact"


def run_exactly(
    experts: HeldExperts, x_TD: torch.Tensor, routing: Routing, trip: Trip, dtype: torch.dtype | None
) -> torch.Tensor:
    """Return the sum of each token's experts times their gates (T, D)."""
    travel = _Travel(experts, routing.token_N[: trip.num_pairs], trip, dtype)

    # Weights as they are: gradients of converted ones would be rounded before they are added up.
    def compute(weights: Sequence[torch.Tensor], x_TD: torch.Tensor, gate_N: torch.Tensor) -> torch.Tensor:
        y_TD: torch.Tensor = _ExactDispatch.apply(x_TD, gate_N, travel, *weights)  # type: ignore[no-untyped-call]
        return y_TD

    if experts.replicas is None:
        result: torch.Tensor = experts.local(compute, x_TD, routing.gate_N)
        return result
    replicas = experts.replicas

    def compute_both(local: Sequence[torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = replicas(lambda own, *rest: compute([*local, *own], *rest), *tensors)
        return both

    result = experts.local(compute_both, x_TD, routing.gate_N)
    return result


class _Travel(NamedTuple):
    """What both passes of a layer know: its experts, the token of each pair, who sends what, the type of products."""

    experts: HeldExperts
    token_N: torch.Tensor
    trip: Trip
    dtype: torch.dtype | None

    def exchange(self, rows: torch.Tensor, splits: Splits) -> torch.Tensor:
        """Send rows, and return those that came."""
        return exchange_rows(rows, splits, self.experts.group)

    def make_layers(
        self, x_rows: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
    ) -> list[Layer]:
        """Return the pairs of each process as a layer of its own, in which a pair is a token; last those that stay."""
        trip, placement = self.trip, self.experts.placement
        plain = [w if self.dtype is None else w.to(self.dtype) for w in weights]
        sizes, counts = list(trip.rows.received), list(trip.num_received)
        parts = [(plain[:3], self.experts.table.widths)] * len(sizes)
        if placement.everywhere:
            counts.append([trip.counts[i] for i in placement.everywhere])
            sizes.append(sum(counts[-1]))
            parts.append((plain[3:], tuple(placement.widths[i] for i in placement.everywhere)))
        cut = zip(torch.split(x_rows, sizes), torch.split(gates, sizes), counts, parts, strict=True)
        return [_make_layer(*each) for each in cut]

    def find_staying(self) -> torch.Tensor:
        """Return the places of the pairs that stay here."""
        return find_replica_pairs(self.experts.placement, self.trip, self.token_N.device)


class _ExactDispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: torch.Tensor, gate_N: torch.Tensor, travel: _Travel, *weights: torch.Tensor
    ) -> torch.Tensor:
        trip, token_N, stays = travel.trip, travel.token_N, travel.find_staying()
        rows_ND = x_TD.new_empty(trip.num_pairs, x_TD.shape[1])
        x_rows = travel.exchange(x_TD[trip.row_token], trip.rows)
        gates = travel.exchange(gate_N[trip.sent_pair], trip.pairs)
        x_rows, gates = torch.cat([x_rows, x_TD[token_N[stays]]]), torch.cat([gates, gate_N[stays]])
        results = [_compute_outputs(layer) for layer in travel.make_layers(x_rows, gates, weights)]
        outputs = [rows for rows, _ in results]
        num_sources = len(trip.num_received)
        rows_ND[trip.sent_pair] = travel.exchange(torch.cat(outputs[:num_sources]), trip.rows.reverse())
        for rows in outputs[num_sources:]:
            rows_ND[stays] = rows
        ctx.travel, ctx.num_tokens = travel, len(x_TD)
        # Last, and at once: a recomputation ends with what is saved last, and must reach every exchange.
        ctx.save_for_backward(x_rows, gates, gate_N, *weights, *(t for _, saved in results for t in saved))
        return sum_pairs(rows_ND, token_N, len(x_TD), gate_N[: trip.num_pairs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        travel: _Travel = ctx.travel
        trip, token_N, stays = travel.trip, travel.token_N, travel.find_staying()
        num_weights = 6 if travel.experts.replicas is not None else 3
        x_rows, gates, gate_N, *saved = ctx.saved_tensors
        weights, kept = saved[:num_weights], iter(saved[num_weights:])
        layers = travel.make_layers(x_rows, gates, weights)
        dy_rows = torch.cat([travel.exchange(dy_TD[trip.row_token], trip.rows), dy_TD[token_N[stays]]])
        cut = torch.split(dy_rows, [len(layer.x_TD) for layer in layers])
        gradients = [
            get_backend(_BACKEND).backward(layer, Saved(*islice(kept, 3)), dy, any(ctx.needs_input_grad[3:]))
            for layer, dy in zip(layers, cut, strict=True)
        ]
        num_sources, back = len(trip.num_received), trip.rows.reverse()
        of_sources, of_replicas = gradients[:num_sources], gradients[num_sources:]
        dx_ND, dgate_N = dy_TD.new_zeros(trip.num_pairs, dy_TD.shape[1]), torch.zeros_like(gate_N)
        dx_ND[trip.sent_pair] = travel.exchange(torch.cat([g.dx_TD for g in of_sources]), back)
        dgate_N[trip.sent_pair] = travel.exchange(torch.cat([g.dgate_N for g in of_sources]), back)
        dtype, more = weights[0].dtype, []
        for own in of_replicas:
            dx_ND[stays], dgate_N[stays] = own.dx_TD, own.dgate_N
            more = [weight.to(dtype) for weight in own[2:]]
        local = _hand_over(travel.experts, [[weight.to(dtype) for weight in g[2:]] for g in of_sources])
        return sum_pairs(dx_ND, token_N, ctx.num_tokens), dgate_N, None, *local, *more


def _make_layer(
    x_rows: torch.Tensor,
    gates: torch.Tensor,
    counts: list[int],
    part: tuple[Sequence[torch.Tensor], tuple[int, ...]],
) -> Layer:
    weights, widths = part
    places = torch.arange(len(x_rows), device=x_rows.device)
    count_P = move_integers(counts, x_rows.device)
    gate, up, down = weights
    return Layer(x_rows, places, gates, count_P, gate, up, down, widths)


def _compute_outputs(layer: Layer) -> tuple[torch.Tensor, Saved]:
    """Return what its expert gives for each pair, without its gate."""
    backend = get_backend(_BACKEND)
    plain = layer._replace(gate_N=torch.ones_like(layer.gate_N))
    return backend.forward(plain, count_room(backend, layer))


def _hand_over(experts: HeldExperts, leaves: list[list[torch.Tensor]]) -> Sequence[torch.Tensor | None]:
    """Give the weights' gradients of each process's tokens to who adds them up, in the order of the processes."""
    if experts.sink is not None:
        for leaf in leaves:
            experts.sink(leaf)
        return [None] * len(WEIGHTS)
    total = TreeSum()
    for leaf in leaves:
        total.add(leaf)
    return total.take()
