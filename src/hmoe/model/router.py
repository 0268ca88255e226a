"""Which experts serve which token: router logits -> `Routing`, one object for every kind of router."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from hmoe.errors import ConfigError
from hmoe.kernels import fuses_router, select_experts
from hmoe.model.capacity import SMALLEST
from hmoe.model.decisions import recall_or_decide
from hmoe.model.noise import draw_seeded_uniform
from hmoe.model.pairs import cut_pairs, list_pairs
from hmoe.model.precision import disable_autocast
from hmoe.model.routers import METHODS
from hmoe.model.routers.base import ExpertChoices
from hmoe.model.routers.top_p import check_thresholds
from hmoe.model.routing import RouterInputs, RouterState, Routing
from hmoe.model.waiting import get_constant, may_wait, would_wait
from hmoe.specs.routers.base import RouterSpec

_IGNORE = "use hmoe.parallelize, or give FSDP2's fully_shard ignored_params={router.bias_E}"


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class RouterLayer(nn.Module):
    """One linear map to expert logits, then the selection of `spec`; runs in float32 or better.

    Attributes:
        weight: (E, D).
        bias_E: of a router that balances by a bias, else None; no gradient, see `update_bias`. Stays float32
            (float64 in a float64 module) whatever the module is converted to.
    """

    def __init__(
        self, dim: int, widths: Sequence[int] | int, spec: RouterSpec, true_gates: bool = False
    ) -> None:
        super().__init__()
        self.widths = (1,) * widths if isinstance(widths, int) else tuple(widths)
        spec.check_experts(len(self.widths))
        self.spec, self.true_gates = spec, true_gates
        self.weight = nn.Parameter(torch.empty(len(self.widths), dim))
        bias_E = torch.zeros(len(self.widths), dtype=_precise(torch.get_default_dtype()))
        self.bias_E = nn.Parameter(bias_E, requires_grad=False) if spec.bias_update is not None else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights of small logits, so that routing starts near uniform."""
        nn.init.normal_(self.weight, std=0.1 * self.weight.shape[1] ** -0.5, generator=generator)
        if self.bias_E is not None:
            nn.init.zeros_(self.bias_E)

    def forward(self, x_TD: torch.Tensor, inputs: RouterInputs = RouterInputs()) -> Routing:  # noqa: B008 - frozen
        """Route x_TD.

        Raises:
            ConfigError: for inputs that this router cannot use, and in training for noise without a seed.
        """
        self._check(inputs, len(x_TD))
        dtype = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        with disable_autocast(x_TD.device):
            x_TD, gumbel_TE = x_TD.to(dtype), None
            if self.training and self.spec.needs_noise:
                x_TD, gumbel_TE = self._noise(x_TD, inputs)
            state = self.make_state(x_TD.device)._replace(gumbel_TE=gumbel_TE, inputs=inputs)
            return route_tokens(F.linear(x_TD, self.weight.to(dtype)), self.spec, state)

    def make_state(self, device: torch.device) -> RouterState:
        """Return what a choice of this router depends on, without inputs and noise."""
        if self.bias_E is not None and self.bias_E.dtype != _precise(self.bias_E.dtype):
            raise ConfigError(f"bias_E: was made {self.bias_E.dtype}, must stay torch.float32; {_IGNORE}")
        bias_E = None if self.bias_E is None else self.bias_E.to(device)
        return RouterState(self.widths, bias_E, training=self.training, true_gates=self.true_gates)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move or convert the module; the bias stays float32 or better, whose small steps bfloat16 would swallow."""
        kept = self.bias_E

        def convert(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if tensor is not kept or moved.dtype == _precise(moved.dtype):
                return moved
            return tensor.to(device=moved.device, dtype=_precise(moved.dtype))

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Take weights; a bias that was stored or assigned in bfloat16 becomes float32."""
        super()._load_from_state_dict(*arguments)
        if self.bias_E is not None:
            self.bias_E.data = self.bias_E.data.to(_precise(self.bias_E.dtype))

    @torch.no_grad()
    def update_bias(self, num_tokens_E: torch.Tensor) -> None:
        """Move each expert's bias by `bias_rate` against its load (Wang et al. 2408.15664).

        Call it once per training step.

        Args:
            num_tokens_E: tokens of the whole step, summed over micro-batches and devices, before drops
                (`Routing.load_E`).
        """
        update = self.spec.bias_update
        if self.bias_E is None or update is None or num_tokens_E.shape != self.bias_E.shape:
            raise ConfigError(
                f"update_bias: {tuple(num_tokens_E.shape)} counts for {len(self.widths)} experts, bias_rate = "
                f"{update.rate if update else 0}; needs a count per expert, and a router with bias_rate above 0"
            )
        if hasattr(self.bias_E, "full_tensor"):
            raise ConfigError(f"update_bias: the bias is sharded, every device must hold it whole; {_IGNORE}")
        load_E = num_tokens_E.double()
        if update.by_compute:
            load_E = (
                load_E
                * get_constant(self.widths, load_E.dtype, load_E.device)
                * (len(self.widths) / sum(self.widths))
            )
        step_E = torch.sign(load_E.mean() - load_E).to(self.bias_E)
        self.bias_E.add_(step_E, alpha=update.rate)

    def _check(self, inputs: RouterInputs, num_tokens: int) -> None:
        """Raise ConfigError for inputs that this router cannot use."""
        if inputs.top_p_T is not None and self.spec.threshold is None:
            raise ConfigError(
                f"top_p_T: the router is {self.spec.title}, which has no threshold; nearest choice: a top-p model"
            )
        if inputs.top_p_T is not None:
            check_thresholds(inputs.top_p_T, num_tokens)
        if not self.spec.uses_ranks and not (inputs.token_rank_T is None and inputs.expert_rank_E is None):
            raise ConfigError('token_rank_T, expert_rank_E: have no effect unless rectify is "ir" or "fr+ir"')
        real_T = inputs.real_T
        if real_T is not None and (real_T.dtype != torch.bool or real_T.shape != (num_tokens,)):
            raise ConfigError(
                f"real_T: {real_T.dtype} of shape {tuple(real_T.shape)}, must be torch.bool of shape ({num_tokens},)"
            )
        if self.training and self.spec.needs_noise and inputs.noise_seed is None:
            raise ConfigError(
                "noise_seed: missing, this router draws random numbers in training (jitter, gumbel); "
                "give an integer that changes with step and layer, or call eval()"
            )

    def _noise(self, x_TD: torch.Tensor, inputs: RouterInputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert inputs.noise_seed is not None
        jitter, gumbel = self.spec.noise
        columns = x_TD.shape[1] if jitter else 0
        draws = columns + (len(self.widths) if gumbel else 0)
        # One draw for both, so that the numbers of a seed do not depend on how many calls are made.
        uniform = draw_seeded_uniform(inputs.noise_seed, (len(x_TD), draws), x_TD.device).to(x_TD.dtype)
        if jitter:
            x_TD = x_TD * (1 + jitter * (2 * uniform[:, :columns] - 1))
        return x_TD, -torch.log(-torch.log(uniform[:, columns:])) if gumbel else None


def route_tokens(logits_TE: torch.Tensor, spec: RouterSpec, state: RouterState | None = None) -> Routing:
    """Select experts and renormalise their scores over the selected set (HMoE eq 7-11).

    `spec` may leave them raw. A row with a NaN or infinite logit gets NaN probabilities and gates, never a
    valid choice.
    """
    state = RouterState() if state is None else state
    if state.widths is None:
        state = state._replace(widths=(1,) * logits_TE.shape[1])
    fused = _select(logits_TE, spec, state)
    if fused is not None:
        return fused
    method = METHODS[spec.name]
    # 0, or NaN where any logit of the row is not finite: one bad logit must spoil its whole row.
    poison_T1 = 0 * logits_TE.detach().sum(1, keepdim=True)
    sigmoid = spec.score_function == "sigmoid"
    poisoned_TE = logits_TE + poison_T1
    scores_TE = torch.sigmoid(poisoned_TE) if sigmoid else torch.softmax(poisoned_TE, dim=1)
    probs_TE = scores_TE / scores_TE.sum(1, keepdim=True).clamp(min=SMALLEST) if sigmoid else scores_TE
    choice_logits_TE = logits_TE.detach()
    if state.off_E is not None:
        choice_logits_TE = choice_logits_TE.masked_fill(state.off_E, -torch.inf)
        scores_TE, probs_TE = (of_TE.masked_fill(state.off_E, 0) for of_TE in (scores_TE, probs_TE))
    # A choice has no gradient: the router learns through the weights of what was chosen.
    fixed_TE = scores_TE.detach()
    decision = recall_or_decide(
        state.inputs.decisions, lambda: method.choose(fixed_TE, choice_logits_TE, spec, state)
    )
    choice = method.weigh(decision, scores_TE, spec, state)
    if state.off_E is not None:  # chosen by tokens that find fewer others than they ask for
        choice = replace(choice, chosen_TE=choice.chosen_TE & ~state.off_E)
    num_tokens_E = choice.chosen_TE.sum(0)
    token_N, expert_N, real_N = list_pairs(choice.chosen_TE, num_tokens_E, spec, state.training)
    gate_N = _gates_of_pairs(choice, token_N, token_N * len(num_tokens_E) + expert_N)
    if real_N is not None:
        gate_N = gate_N.masked_fill(~real_N, 0)
    if choice.scale != 1:
        gate_N = gate_N * choice.scale
    return Routing(token_N, expert_N, gate_N, logits_TE, probs_TE, num_tokens_E, choice.asked_E, choice.slots)


def _gates_of_pairs(choice: ExpertChoices, token_N: torch.Tensor, cell_N: torch.Tensor) -> torch.Tensor:
    """Return the gate of each pair, on a GPU divided before pairs are picked.

    The gradient of picking a token's sum adds up in no fixed order from three on.
    """
    if choice.total_T1 is None:
        return choice.weight_TE.flatten().gather(0, cell_N)
    if would_wait(token_N):
        return (choice.weight_TE / choice.total_T1).flatten().gather(0, cell_N)
    return choice.weight_TE.flatten().gather(0, cell_N) / choice.total_T1.flatten().gather(0, token_N)


def _select(logits_TE: torch.Tensor, spec: RouterSpec, state: RouterState) -> Routing | None:
    """Select by the kernels, where there are some for this router and device; else return None."""
    if state.gumbel_TE is not None or state.true_gates or not state.widths or state.off_E is not None:
        return None
    rule = METHODS[spec.name].make_rule(spec, state)
    if rule is None or not fuses_router(logits_TE):
        return None
    decisions = state.inputs.decisions
    given_TE = None if decisions is None else decisions.recall()
    selection = select_experts(logits_TE, state.bias_E, rule, given_TE)
    if decisions is not None and given_TE is None:
        decisions.keep(selection.chosen_TE)
    pairs = (selection.token_N, selection.expert_N, selection.gate_N)
    if not rule.k and may_wait(logits_TE):
        pairs = cut_pairs(pairs, selection.num_tokens_E)
    return Routing(*pairs, logits_TE, selection.probs_TE, selection.num_tokens_E)
