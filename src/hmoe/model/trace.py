"""What a model's routers did with a text, token by token; sums over routings for servers and benchmarks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hmoe.errors import ConfigError
from hmoe.model.attention import Sequences
from hmoe.model.pairs import cut_pairs
from hmoe.model.routing import Routing
from hmoe.model.switch_off import switch_off_experts
from hmoe.model.waiting import get_constant

if TYPE_CHECKING:
    from hmoe.model.transformer import Transformer

ExpertsOff = Sequence[int] | Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class RoutingTrace:
    """Routing of T tokens in the Z MoE layers of a model, on the CPU; a dense model has no such layers.

    Token-expert pairs of all layers stand in one list, because their number differs from token to token:

        layer_N   0 0 0 0 1 1 1 ...   sorted by layer,
        expert_N  0 0 1 2 0 1 1 ...   then expert,
        token_N   0 2 2 1 1 0 2 ...   then token

    Attributes:
        tokens_T: token ids; sequences of a batch one after the other.
        blocks: for each MoE layer the number of its block in the model.
        widths: hidden units of each expert (E); 0 for zero-computation experts.
        layer_N, token_N, expert_N: MoE layer (from 0), token and expert of each pair, int64.
        gate_N: gate of each pair.
        probs_ZTE: probabilities of all experts; those that were switched off have 0, and a row then sums to
            less than 1.
        nll_T: negative log-likelihood of each token given those before it, in nats, float64; NaN for the
            first of a sequence.
        width_ZT: hidden units that each token activated in each layer, float64.
    """

    tokens_T: torch.Tensor
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    layer_N: torch.Tensor
    token_N: torch.Tensor
    expert_N: torch.Tensor
    gate_N: torch.Tensor
    probs_ZTE: torch.Tensor
    nll_T: torch.Tensor
    width_ZT: torch.Tensor

    @property
    def gate_ZTE(self) -> torch.Tensor:
        """Gates as a table, 0 where an expert did not serve the token."""
        gate_ZTE = self.gate_N.new_zeros(self.probs_ZTE.shape)
        return gate_ZTE.index_put((self.layer_N, self.token_N, self.expert_N), self.gate_N)

    @property
    def chosen_ZTE(self) -> torch.Tensor:
        """Which experts served which token, as a table of booleans."""
        chosen_ZTE = torch.zeros(self.probs_ZTE.shape, dtype=torch.bool)
        chosen_ZTE[self.layer_N, self.token_N, self.expert_N] = True
        return chosen_ZTE

    @property
    def num_tokens_ZE(self) -> torch.Tensor:
        """Tokens that each expert served, int64; divided by T they are the paper's activation ratios."""
        num_layers, _, num_experts = self.probs_ZTE.shape
        # Counted from the pairs: the table of booleans takes memory for all experts of every token.
        cell_N = self.layer_N * num_experts + self.expert_N
        return torch.bincount(cell_N, minlength=num_layers * num_experts).view(num_layers, num_experts)

    @property
    def num_experts_ZT(self) -> torch.Tensor:
        """Experts that served each token, int64."""
        num_layers, num_tokens, _ = self.probs_ZTE.shape
        cell_N = self.layer_N * num_tokens + self.token_N
        return torch.bincount(cell_N, minlength=num_layers * num_tokens).view(num_layers, num_tokens)


@torch.no_grad()
def trace(
    model: "Transformer",
    tokens: Sequence[int] | torch.Tensor,
    top_p_experts: float | None = None,
    without: ExpertsOff = (),
) -> RoutingTrace:
    """Read tokens and return which experts served each of them, with gates, probabilities and likelihoods.

    The model reads as in evaluation, without noise, and all tokens in one pass: capacities hold for them
    together, and how much of a long text is read at once is the caller's choice.

    An expert that is switched off is never chosen, and its probability goes to nobody: the others keep the
    probabilities that they have with it. Top-k takes the best k of the others; top-p takes others until their
    probabilities reach p, or all of them if they do not; an expert that chooses its tokens chooses none. A
    token that finds fewer experts than it asks for has fewer. Capacities and groups stay what they are. Gates
    follow from the chosen experts by the router's own rule: raw, or divided by their sum.

    Args:
        model: a model with or without MoE layers.
        tokens: ids of one sequence (L), or of several (B, L).
        top_p_experts: another threshold for the routers of a top-p model, in (0, 1].
        without: experts that are switched off: in all MoE layers, or by MoE layer (from 0) as in
            `{0: [3], 5: [1, 2]}`. Zero-computation experts count as experts, after the others.

    Raises:
        ConfigError: for tokens, a threshold or experts that the model does not have.
    """
    tokens_BL = _read_tokens(tokens, model)
    off_by_layer = _list_off(without, model)
    context = Sequences()
    if top_p_experts is not None:
        context.top_p_T = _fill_thresholds(top_p_experts, model, tokens_BL)
    with _evaluating(model), switch_off_experts(model, off_by_layer):
        x_BLD, routings = model.hidden(tokens_BL, context)
    for layer, off in off_by_layer.items():
        # A compiled model does not see hooks, and would answer as if nothing had been asked.
        if int(routings[layer].num_tokens_E[off].sum()):
            raise ConfigError("without: has no effect on a compiled model; trace it before torch.compile")
    # Nothing comes before the first token of a sequence, by which it could be predicted.
    nll_BL = torch.full(tokens_BL.shape, torch.nan, dtype=torch.float64)
    following, _ = score_targets(model, x_BLD[:, :-1].flatten(0, 1), tokens_BL[:, 1:].flatten())
    nll_BL[:, 1:] = following.view(len(nll_BL), tokens_BL.shape[1] - 1)
    return _assemble(model, tokens_BL, routings, nll_BL.flatten())


def count_activated(
    routings: Sequence[Routing], widths: Sequence[int], num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden units and the experts that each token activated, summed over MoE layers, both (T).

    Made for a server, which asks after every pass: no probabilities are touched, and all layers are counted
    together. All pairs must be real, as they are in eager inference.

    Args:
        routings: of one pass, one per MoE layer.
        widths: hidden units of each expert, zero-computation experts included.
        num_tokens: tokens of the pass, T.
    """
    if not routings:
        return torch.zeros(num_tokens, dtype=torch.float64), torch.zeros(num_tokens, dtype=torch.int64)
    token_N = torch.cat([routing.token_N for routing in routings])
    width_E = get_constant(tuple(widths), torch.float64, token_N.device)
    width_N = width_E[torch.cat([routing.expert_N for routing in routings])]
    # Widths are whole numbers in float64, so that the sums are exact in any order.
    units_T = torch.bincount(token_N, width_N, minlength=num_tokens)
    return units_T, torch.bincount(token_N, minlength=num_tokens)


def sum_activated_units(routings: Sequence[Routing], widths: Sequence[int]) -> float:
    """Return the hidden units that all tokens of a pass activated together, summed over MoE layers."""
    if not routings:
        return 0.0
    # Summed on the device first, so that the host waits once and not for every layer.
    num_tokens_E = torch.stack([routing.num_tokens_E for routing in routings]).sum(0)
    return float(sum(count * width for count, width in zip(num_tokens_E.tolist(), widths, strict=True)))


def average_activated(total: float, num_tokens: int, num_layers: int) -> float:
    """Return a sum of hidden units or experts as a mean over tokens and MoE layers; 0 where there are none."""
    return total / num_tokens / num_layers if num_tokens and num_layers else 0.0


def count_scored_tokens(vocab: int) -> int:
    """Return for how many tokens logits are computed at one time: 2**24 numbers, and at least one token."""
    return max(1, 2**24 // vocab)


def score_targets(
    model: "Transformer", x_TD: torch.Tensor, target_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each target's negative log-likelihood in nats and whether it is the likeliest token, both (T).

    Both are on the CPU.

    Args:
        model: whose output head predicts.
        x_TD: outputs of the last norm at the positions that predict.
        target_T: tokens that follow them.
    """
    nlls, greedy = [], []
    chunk = count_scored_tokens(model.config.vocab)
    # Piece by piece: the logits of a long text and a large vocabulary do not fit into memory together.
    for x, target in zip(torch.split(x_TD, chunk), torch.split(target_T, chunk), strict=True):
        logits = (x @ model.head_weight.T).to(torch.promote_types(x.dtype, torch.float32))
        nlls.append(torch.nn.functional.cross_entropy(logits, target, reduction="none").double().cpu())
        greedy.append((logits.argmax(1) == target).cpu())
    return torch.cat(nlls), torch.cat(greedy)


def _read_tokens(tokens: Sequence[int] | torch.Tensor, model: "Transformer") -> torch.Tensor:
    """Return token ids as (B, L) on the model's device."""
    tokens_BL = torch.as_tensor(tokens)
    tokens_BL = tokens_BL[None] if tokens_BL.dim() == 1 else tokens_BL
    if tokens_BL.dim() != 2 or not tokens_BL.numel():
        shape = tuple(tokens_BL.shape[1:] if tokens_BL.dim() == 2 else tokens_BL.shape)
        raise ConfigError(f"tokens: of shape {shape}; must be (L) or (B, L), with at least one token")
    if tokens_BL.is_floating_point() or tokens_BL.dtype == torch.bool:
        raise ConfigError(f"tokens: {tokens_BL.dtype}, must be integers")
    vocab = model.config.vocab
    # Looked at here: an id beyond the embedding would end a process that uses a GPU.
    if not 0 <= int(tokens_BL.min()) <= int(tokens_BL.max()) < vocab:
        raise ConfigError(f"tokens: ids must be from 0 to {vocab - 1}, the model's vocabulary")
    return tokens_BL.to(model.embed.weight.device, torch.int64)


def _list_off(without: ExpertsOff, model: "Transformer") -> dict[int, list[int]]:
    """Return the experts that are switched off, by MoE layer; layers without any are left out."""
    num_layers = len(model.config.moe_layers)
    num_experts = len(model.config.moe.routed_widths) if model.config.moe is not None else 0
    by_layer = without if isinstance(without, Mapping) else {layer: without for layer in range(num_layers)}
    if without and not num_layers:
        raise ConfigError("without: the model is dense and has no experts")
    for layer, experts in by_layer.items():
        if layer not in range(num_layers):
            raise ConfigError(f"without: MoE layer {layer!r}, must be from 0 to {num_layers - 1}")
        for expert in experts:
            if expert not in range(num_experts):
                raise ConfigError(f"without: expert {expert!r}, must be from 0 to {num_experts - 1}")
    return {layer: sorted(set(experts)) for layer, experts in by_layer.items() if experts}


def _fill_thresholds(top_p_experts: float, model: "Transformer", tokens_BL: torch.Tensor) -> torch.Tensor:
    """Return the threshold of every token."""
    if not 0 < top_p_experts <= 1:
        raise ConfigError(f"top_p_experts = {top_p_experts}, must be in (0, 1]")
    if model.config.moe is None or model.config.moe.router.threshold is None:
        raise ConfigError("top_p_experts: the router of this model is not top-p and has no threshold")
    # In the router's type, in which its own p is compared too: 0.6 is another number in double precision.
    dtype = torch.promote_types(model.embed.weight.dtype, torch.float32)
    return torch.full((tokens_BL.numel(),), top_p_experts, dtype=dtype, device=tokens_BL.device)


@contextlib.contextmanager
def _evaluating(model: "Transformer") -> Iterator[None]:
    """Put every module into evaluation mode for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one: parts that were frozen in evaluation mode stay in it
            module.training = True


def _assemble(
    model: "Transformer", tokens_BL: torch.Tensor, routings: Sequence[Routing], nll_T: torch.Tensor
) -> RoutingTrace:
    """Return a trace from what a pass gave, moved to the CPU."""
    num_tokens, tokens_T = tokens_BL.numel(), tokens_BL.flatten().cpu()
    if not routings:
        no_pairs = torch.empty(0, dtype=torch.int64)
        probs_ZTE = torch.empty(0, num_tokens, 0)
        width_ZT = torch.empty(0, num_tokens, dtype=torch.float64)
        pairs = (no_pairs, no_pairs, no_pairs, probs_ZTE.flatten())
        return RoutingTrace(tokens_T, (), (), *pairs, probs_ZTE, nll_T, width_ZT)
    widths = tuple(model.config.moe.routed_widths) if model.config.moe is not None else ()
    # Under a compiler lists of pairs are longer than what is real.
    real = [cut_pairs((r.token_N, r.expert_N, r.gate_N), r.num_tokens_E) for r in routings]
    return RoutingTrace(
        tokens_T=tokens_T,
        blocks=tuple(model.config.moe_layers),
        widths=widths,
        layer_N=torch.cat([torch.full((len(token_N),), layer) for layer, (token_N, _, _) in enumerate(real)]),
        token_N=torch.cat([token_N.cpu() for token_N, _, _ in real]),
        expert_N=torch.cat([expert_N.cpu() for _, expert_N, _ in real]),
        gate_N=torch.cat([gate_N.cpu() for _, _, gate_N in real]),
        probs_ZTE=torch.stack([routing.probs_TE.cpu() for routing in routings]),
        nll_T=nll_T,
        width_ZT=torch.stack([routing.width_T(widths).cpu() for routing in routings]),
    )
