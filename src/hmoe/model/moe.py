"""The mixture of experts whose widths differ: router + experts, usable alone in anybody's model."""

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from hmoe.errors import ConfigError, NonFiniteError
from hmoe.kernels import expert_ffn
from hmoe.model.decisions import Decisions
from hmoe.model.hyper import HyperLayer, HyperNetwork, selected
from hmoe.model.layers import SwiGLU
from hmoe.model.no_gradient import guard_reentrant
from hmoe.model.precision import autocast_dtype, without_autocast
from hmoe.model.router import RouterLayer
from hmoe.model.routing import Hints, Routing
from hmoe.model.zero import ZeroLayer
from hmoe.specs.experts import Hyper, ZeroExperts, routed_widths
from hmoe.specs.routers import NAMES, Router, TopK, describe_constant_gates


class MoE(nn.Module):
    """Mixture of SwiGLU experts of any widths (HMoE eq 1, 2, 6-11); dropless unless the router has a capacity.

    Optionally beside them: a shared expert that serves every token (DeepSeekMoE), experts without hidden units that the router
    may choose (MoE++), HyperExperts made from the experts that were not chosen (HyperMoE).

    In float16 numbers end at 65,504: an expert whose units exceed it gives infinite or NaN outputs, as plain PyTorch does; there is
    no loss scaling here. bfloat16 has float32's range.

    The three weight matrices are rows of hidden units, expert after expert; the down projection is transposed, so a
    hidden unit is one row in each and an expert is a row range.

    Attributes:
        widths: hidden units of each expert.
        routed_widths: the same with a 0 for each zero-computation expert; routers, losses and counts go by these.
        router: its `weight` is (E, D).
        w_gate, w_up, w_down: (F, D) with F = sum(widths).
        check_finite: eager forward raises NonFiniteError on NaN or infinite router logits; costs one device sync.
            Switched off (and always under torch.compile), the outputs of such tokens are NaN.
        shared, zero, hyper, hyper_network: modules of what is beside the experts, or None. In a model whose layers share one
            hypernetwork, that is given to `forward`.
        backend: name of the backend that computes the experts (`hmoe.kernels.NAMES`), or None for the fastest known.

    A router whose gates are constants (top-1, renormalised) is announced by a UserWarning.

    Raises:
        ConfigError: for widths below 1, a router that asks for more experts than there are, or parts that do not fit together.
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        router: Router = TopK(),  # noqa: B008 - frozen
        *,
        hyper: Hyper | None = None,
        shared: int = 0,
        zero: ZeroExperts | None = None,
        shared_network_layer: int | None = None,
    ) -> None:
        """Make the layer.

        Args:
            dim: width of the model.
            widths: hidden units of each expert.
            router: how experts are chosen.
            hyper: adds HyperExperts.
            shared: hidden units of a shared expert; 0: none.
            zero: zero-computation experts, which the router can choose too.
            shared_network_layer: index of this layer in a model whose layers share a hypernetwork; None: it has its own.
        """
        super().__init__()
        if not widths or any(type(size) is not int or size < 1 for size in (dim, *widths)):
            raise ConfigError(f"MoE: dim = {dim}, widths = {list(widths)}; all must be integers of at least 1")
        if getattr(router, "name", None) not in NAMES:  # by name: exported code may hold the class twice
            raise ConfigError(f"MoE: router = {router!r}, must be a router spec such as hmoe.TopK(2)")
        if type(shared) is not int or shared < 0:
            raise ConfigError(f"MoE: shared = {shared}, must be an integer of at least 0")
        note = describe_constant_gates(router, len(routed_widths(widths, zero)))
        if note is not None and shared_network_layer is None:  # of a whole model whoever trains it is told once
            warnings.warn(note, stacklevel=2)
        self.dim = dim
        self.widths = tuple(widths)
        self.routed_widths = routed_widths(widths, zero)
        if zero is not None:
            zero.check(router)
        if hyper is not None:
            hyper.check(router)
        self.check_finite = True
        self.backend: str | None = None
        self.router = RouterLayer(dim, self.routed_widths, router, zero is not None and zero.true_gates)
        self.w_gate = nn.Parameter(torch.empty(sum(self.widths), dim))
        self.w_up = nn.Parameter(torch.empty(sum(self.widths), dim))
        self.w_down = nn.Parameter(torch.empty(sum(self.widths), dim))
        self.shared = SwiGLU(dim, shared) if shared else None
        self.zero = ZeroLayer(dim, zero, len(self.widths)) if zero else None
        self.hyper = HyperLayer(len(self.routed_widths), hyper, shared_network_layer or 0) if hyper else None
        own = hyper if shared_network_layer is None else None
        self.hyper_network = HyperNetwork(dim, 1, own) if own else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights; every expert's output has the same scale whatever its width."""
        self.router.reset_parameters(generator)
        nn.init.normal_(self.w_gate, std=self.dim**-0.5, generator=generator)
        nn.init.normal_(self.w_up, std=self.dim**-0.5, generator=generator)
        for w_down, width in zip(torch.split(self.w_down, list(self.widths)), self.widths, strict=True):
            nn.init.normal_(w_down, std=width**-0.5, generator=generator)
        for part in (self.shared, self.zero, self.hyper, self.hyper_network):
            if part is not None:
                part.reset_parameters(generator)

    def forward(
        self,
        x: torch.Tensor,
        top_p_T: torch.Tensor | None = None,
        *,
        token_rank_T: torch.Tensor | None = None,
        expert_rank_E: torch.Tensor | None = None,
        noise_seed: int | torch.Tensor | None = None,
        real_T: torch.Tensor | None = None,
        hyper_network: HyperNetwork | None = None,
        decisions: Decisions | None = None,
    ) -> tuple[torch.Tensor, Routing]:
        """x (..., D) -> (y (..., D), Routing of the flattened tokens).

        Args:
            x: inputs.
            top_p_T: another threshold for each token than the top-p router's own, in (0, 1]: cheap and careful tokens
                in one batch.
            token_rank_T, expert_rank_E: ranks that tokens and experts live on, for a router that rectifies.
            noise_seed: for a router with noise, in training: an integer that changes with step and layer.
            real_T: boolean, False for padding: it takes no slot of a router with a capacity, nor of one whose experts choose.
            hyper_network: that of the model, for a layer without its own.
            decisions: which experts were chosen in an earlier pass over x, for one that repeats it (activation checkpointing).

        Raises:
            ConfigError: if the last axis is not `dim`, or the router cannot use what it is given.
            NonFiniteError: see `check_finite`.
        """
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ConfigError(f"MoE: the input's shape is {tuple(x.shape)}, its last axis must be dim = {self.dim}")
        x_TD = x.reshape(-1, self.dim)
        routing = self.router(x_TD, Hints(top_p_T, token_rank_T, expert_rank_E, noise_seed, real_T, decisions))
        if self.check_finite and not torch.compiler.is_compiling():
            self._raise_if_not_finite(routing.logits_TE)
        weights = (self.w_gate, self.w_up, self.w_down)
        dtype = autocast_dtype(x.device)
        if dtype is not None:
            x_TD, weights = x_TD.to(dtype), tuple(w.to(dtype) for w in weights)  # type: ignore[assignment]
        with without_autocast(x.device):
            pairs = (routing.token_N, routing.gate_N, routing.num_tokens_E[: len(self.widths)])
            y_TD = expert_ffn(x_TD, *pairs, *weights, self.widths, self.backend)
        y_TD = self._beside(x_TD, y_TD, routing, hyper_network)
        return y_TD.view(x.shape), guard_reentrant(routing) if self.training else routing

    def _beside(
        self, x_TD: torch.Tensor, y_TD: torch.Tensor, routing: Routing, network: HyperNetwork | None
    ) -> torch.Tensor:
        """Add what the other parts of the layer give."""
        if self.zero is not None:
            y_TD = y_TD + self.zero(x_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        if network is not None and (self.hyper is None or self.hyper_network is not None):
            has = "no HyperExperts" if self.hyper is None else "a hypernetwork of its own"
            raise ConfigError(f"MoE: hyper_network has no effect, this layer has {has}; leave it out")
        if self.hyper is not None:
            network = self.hyper_network or network
            if network is None:
                raise ConfigError("MoE: hyper_network is missing, this layer shares the model's")
            y_TD = y_TD + self.hyper(x_TD, selected(routing), network)
        return y_TD

    def expert(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Writable views of expert i: w_gate (h_i, D), w_up (h_i, D), w_down (D, h_i)."""
        return self._slices(i, self.w_gate.data, self.w_up.data, self.w_down.data)

    def expert_grad(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of expert i, shaped as `expert(i)`; zeros if no token came.

        Raises:
            RuntimeError: before a backward pass.
        """
        grads = [w.grad for w in (self.w_gate, self.w_up, self.w_down)]
        if any(grad is None for grad in grads):
            raise RuntimeError("expert_grad: no gradients yet, run backward() first")
        return self._slices(i, *(grad for grad in grads if grad is not None))

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"dim={self.dim}, widths={self.widths}, router={self.router.spec}"

    def _slices(self, i: int, *rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gate, up, down = (torch.split(w, list(self.widths))[i] for w in rows)
        return gate, up, down.T

    def _raise_if_not_finite(self, logits_TE: torch.Tensor) -> None:
        bad_T = ~torch.isfinite(logits_TE).all(1)
        if bad_T.any():
            first = int(bad_T.nonzero()[0])
            raise NonFiniteError(
                f"router logits of {int(bad_T.sum())} of {len(bad_T)} tokens are NaN or infinite (first: token {first}); "
                "check the layer's input, or set check_finite=False to get NaN outputs instead"
            )
