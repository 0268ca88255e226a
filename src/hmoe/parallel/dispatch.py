"""Expert parallelism: each process holds some experts of a layer, and tokens travel to those that they chose.

    tokens -> router -> rows to the experts' processes -> experts -> rows back -> sum of each token
                        (all-to-all of uneven splits)               (the same, the other way around)

What needs no travelling, shared experts and experts that every process has, is computed while rows are on their way
back, and in the backward pass while gradients are on their way to the experts.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hmoe.errors import ConfigError
from hmoe.kernels import expert_ffn
from hmoe.kernels.streamed import stream_experts
from hmoe.model.moe import MoE
from hmoe.model.moe_input import check_same_dtype
from hmoe.model.precision import disable_autocast, find_autocast_dtype
from hmoe.model.routing import Routing
from hmoe.model.waiting import get_constant
from hmoe.parallel.exact_dispatch import run_exactly
from hmoe.parallel.exchange import Transfer, exchange_rows, sum_rows, take_rows
from hmoe.parallel.expert_rows import ExpertRows, GradientSink, HeldExperts, find_replica_pairs
from hmoe.parallel.trip import PartTable, Trip, move_integers, plan_trip, repeat_each
from hmoe.specs.placement import Placement


class DispatchedExperts(nn.Module):
    """The experts of a layer, of which this process holds those that a placement gives it.

    Attributes:
        placement: of all of them.
        local: their rows that lie here alone, in this group.
        replicas: rows of experts that every process has, None without such.
        group, rank: the processes among which they are placed, and the number of this one.
        is_shared: whether the rows are shared with other processes that hold the same experts.
        gradient_share: by which gradients of the local rows are multiplied, once those of all tokens are added up.
        exact: whether results have the bits of one process, for which each process's tokens are computed by themselves.
        sink: takes the gradients of the local rows in exact mode, for each process's tokens in their order; None: they
            are added up in a fixed tree and left to autograd.
    """

    def __init__(self, moe: MoE, placement: Placement, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.rank = group, dist.get_rank(group)
        self.take_placement(placement)
        self.local = ExpertRows.cut(moe, placement.list_rows(self.rank))
        self.replicas = ExpertRows.cut(moe, placement.list_replica_rows()) if placement.everywhere else None
        self.gradient_share, self.exact, self.is_shared = 1.0, False, False
        self.sink: GradientSink | None = None
        self.register_state_dict_pre_hook(_refuse_state_dict)  # type: ignore[no-untyped-call]

    def take_placement(self, placement: Placement) -> None:
        """Send tokens by a placement from now on; the rows must follow."""
        self.placement, self.table = placement, PartTable(placement, self.rank)

    @property
    def local_experts(self) -> Sequence[int]:
        """Experts of which this process has all hidden units."""
        whole = self.placement.list_whole_ranks()
        return [i for i, rank in enumerate(whole) if rank == self.rank or i in self.placement.everywhere]

    def list_ranks(
        self, num_tokens: int, num_experts: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the real ranks of tokens and experts, for routers that rectify; -1 for experts that are not whole.

        All tokens are here, and so are the experts that every process has. Experts without hidden units are nowhere.
        """
        own = set(self.local_experts)
        whole = self.placement.list_whole_ranks()
        ranks = [self.rank if i in own else -1 if rank is None else rank for i, rank in enumerate(whole)]
        ranks += [-1] * (num_experts - len(ranks))
        token_rank_T = torch.full((num_tokens,), self.rank, dtype=torch.int64, device=device)
        return token_rank_T, get_constant(tuple(ranks), torch.int64, device)

    def select_rows(self, expert: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the rows of a local expert in tensors that are laid out as the weights among which it is.

        Raises:
            ConfigError: if this process does not have all of it.
        """
        if expert not in self.local_experts:
            ranks = [str(part.rank) for part in self.placement.parts if part.expert == expert]
            where = " and ".join(ranks)
            raise ConfigError(
                f"expert {expert}: its weights are on process {where} of the group, this is {self.rank}"
            )
        is_everywhere = expert in self.placement.everywhere
        experts = (
            self.placement.everywhere if is_everywhere else tuple(part.expert for part in self.table.own)
        )
        widths = [self.placement.widths[i] for i in experts] if is_everywhere else list(self.table.widths)
        local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        if len(local[0]) != sum(widths):
            raise ConfigError(
                f"expert {expert}: its weights are shared by several processes, this is one of them"
            )
        return [torch.split(tensor, widths)[experts.index(expert)] for tensor in local]

    def find_home(self, expert: int) -> ExpertRows:
        """Return the rows among which those of a local expert are."""
        return (
            self.replicas if self.replicas is not None and expert in self.placement.everywhere else self.local
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self,
        x_TD: torch.Tensor,
        routing: Routing,
        shared: nn.Module | None = None,
        backend: str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the sum of each token's experts times their gates (T, D), and what the shared one gives, if known."""
        dtype = find_autocast_dtype(x_TD.device)
        check_same_dtype(x_TD, self.local.w_gate if dtype is None else x_TD)
        trip = plan_trip(routing, self.table, self.group, len(x_TD), by_pair=self.exact)
        if self.exact:
            with disable_autocast(x_TD.device):
                held = HeldExperts(
                    self.placement, self.table, self.group, self.local, self.replicas, self.sink
                )
                y_TD = run_exactly(held, x_TD, routing, trip, dtype)
            # The shared expert in its own place: its gradient of x is added where one process adds it.
            return y_TD, None
        with disable_autocast(x_TD.device):
            outputs = self._compute_rows(x_TD, routing, trip, dtype, backend)
            back = Transfer(trip.rows.reverse(), self.group)
            arriving = back.begin(outputs)
        shared_TD = None if shared is None else shared(x_TD)
        with disable_autocast(x_TD.device):
            own_TD = self._compute_replicas(x_TD, routing, trip, dtype, backend)
            y_TD = sum_rows(back.wait(arriving), trip.row_token, len(x_TD))
        return y_TD if own_TD is None else y_TD + own_TD, shared_TD

    def _compute_rows(
        self, x_TD: torch.Tensor, routing: Routing, trip: Trip, dtype: torch.dtype | None, backend: str | None
    ) -> torch.Tensor:
        """Return for each row that came the sum of its experts here times their gates."""
        device = x_TD.device
        to_experts = Transfer(trip.rows, self.group)
        arriving = to_experts.begin(take_rows(x_TD, trip.row_token))
        gates = Transfer(trip.pairs, self.group)
        gates_arriving = gates.begin(take_rows(routing.gate_N[:, None], trip.sent_pair))
        rows = exchange_rows(trip.sent_row.int(), trip.pairs, self.group)
        firsts = list(accumulate(trip.rows.received, initial=0))[:-1]
        order = trip.order_received(device)
        token_N = (rows.long() + repeat_each(firsts, trip.pairs.received, device))[order]
        gate_N = gates.wait(gates_arriving).index_select(0, order)[:, 0]
        x_rows = to_experts.wait(arriving)
        counts = [
            sum(of_source[part] for of_source in trip.num_received) for part in range(len(self.table.own))
        ]
        count_P = move_integers(counts, device)

        def compute(
            weights: Sequence[torch.Tensor], x_rows: torch.Tensor, gate_N: torch.Tensor
        ) -> torch.Tensor:
            own = [_share_gradient(w if dtype is None else w.to(dtype), self.gradient_share) for w in weights]
            if not counts:  # no expert is here, and nobody sends anything
                # All of it is empty; but the gradients of all of it must set out, as the others' do.
                return x_rows + torch.stack([each.sum().to(x_rows) for each in (gate_N, *own)]).sum()
            gate, up, down = own
            return expert_ffn(x_rows, token_N, gate_N, count_P, gate, up, down, self.table.widths, backend)

        if self.local.source is not None:
            return stream_experts(x_rows, token_N, gate_N, count_P, self.table.widths, self.local.source)
        rows_out: torch.Tensor = self.local(compute, x_rows, gate_N)
        return rows_out

    def _compute_replicas(
        self, x_TD: torch.Tensor, routing: Routing, trip: Trip, dtype: torch.dtype | None, backend: str | None
    ) -> torch.Tensor | None:
        """Return what the experts give that every process has; None without such."""
        if self.replicas is None:
            return None
        experts, pairs = self.placement.everywhere, find_replica_pairs(self.placement, trip, x_TD.device)
        count_P = routing.num_tokens_E[get_constant(tuple(experts), torch.int64, x_TD.device)]
        widths = [self.placement.widths[expert] for expert in experts]
        gate_N, token_N = take_rows(routing.gate_N[:, None], pairs)[:, 0], routing.token_N[pairs]

        def compute(weights: Sequence[torch.Tensor], gate_N: torch.Tensor) -> torch.Tensor:
            own = [w if dtype is None else w.to(dtype) for w in weights]
            gate, up, down = own
            return expert_ffn(x_TD, token_N, gate_N, count_P, gate, up, down, widths, backend)

        y_TD: torch.Tensor = self.replicas(compute, gate_N)
        return y_TD


def _refuse_state_dict(*_: object) -> None:
    """Raise ConfigError: a process would silently write its own experts alone, under the names of all."""
    raise ConfigError(
        "state_dict: experts are placed, this process has some of them; nearest is "
        "hmoe.parallel.kept_rows.gather_weights(model)"
    )


class _ShareGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: torch.Tensor, share: float) -> torch.Tensor:
        ctx.share = share  # type: ignore[attr-defined]
        return weight.view_as(weight)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return gradient * ctx.share, None  # type: ignore[attr-defined]


def _share_gradient(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return a weight whose gradient is multiplied by a number."""
    if share == 1:
        return weight
    shared: torch.Tensor = _ShareGradient.apply(weight, share)  # type: ignore[no-untyped-call]
    return shared
