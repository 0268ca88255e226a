"""The mixture of experts whose widths differ: router + experts, usable alone in anybody's model."""

import contextlib
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from hmoe.errors import ConfigError
from hmoe.kernels import expert_ffn
from hmoe.kernels.streamed import StreamedExperts, stream_experts
from hmoe.model.decisions import Decisions
from hmoe.model.expert_views import PlacedExperts, list_expert_weights, slice_expert
from hmoe.model.hyper import HyperLayer, HyperNetwork, find_selected
from hmoe.model.layer_words import describe_layer
from hmoe.model.layers import SwiGLU
from hmoe.model.moe_input import check_moe_input, check_same_dtype, raise_if_not_finite
from hmoe.model.no_gradient import guard_reentrant
from hmoe.model.precision import disable_autocast, find_autocast_dtype
from hmoe.model.router import RouterLayer
from hmoe.model.routing import RouterInputs, Routing
from hmoe.model.zero import ZeroLayer
from hmoe.specs.experts import Hyper, ZeroExperts
from hmoe.specs.model import MoESpec
from hmoe.specs.routers.base import RouterSpec
from hmoe.specs.routers.top_k import TopK


class MoE(nn.Module):
    """Mixture of SwiGLU experts of any widths (HMoE eq 1, 2, 6-11); dropless unless the router has a capacity.

    Optionally beside them: a shared expert that serves every token (DeepSeekMoE), experts without hidden units that the
    router may choose (MoE++), HyperExperts made from the experts that were not chosen (HyperMoE).

    In float16 numbers end at 65,504: an expert whose units exceed it gives infinite or NaN outputs, as plain PyTorch
    does; there is no loss scaling here. bfloat16 has float32's range.

    The three weight matrices are rows of hidden units, expert after expert; the down projection is transposed, so a
    hidden unit is one row in each and an expert is a row range.

    Weights begin as normal random numbers (`reset_parameters`): of the router with deviation 0.1 / sqrt(D), so that
    routing begins near uniform; of w_gate and w_up with 1 / sqrt(D), of w_down with 1 / sqrt(h_i) by the expert's own
    width, so that all experts begin equally loud; a router's bias with 0. A whole model divides w_down by
    sqrt(2 x its layers). hmoe's trainer lets every weight of the layer decay but the router's and the hypernetwork's
    layer embedding; a router's bias has no gradient, `router.update_bias` moves it.

    Attributes:
        widths: hidden units of each expert.
        routed_widths: the same with a 0 for each zero-computation expert; routers, losses and counts go by these.
        router: its `weight` is (E, D).
        w_gate, w_up, w_down: (F, D) with F = sum(widths); None where `hmoe.parallelize` placed the experts.
        check_finite: eager forward raises NonFiniteError on NaN or infinite router logits; costs one device sync.
            Switched off (and always under torch.compile), the outputs of such tokens are NaN.
        shared, zero, hyper, hyper_network: modules of what is beside the experts, or None. In a model whose
            layers share one hypernetwork, that is given to `forward`.
        backend: name of the backend that computes the experts (`hmoe.kernels.NAMES`), or None for the fastest known.
        source: gives and takes experts that are not all in the device's memory (`hmoe.parallel.offload`), or None.

    A router whose gates are constants (top-1, renormalised) is announced by a UserWarning.

    Raises:
        ConfigError: for widths below 1, a router that asks for more experts than there are, or parts that do
            not fit together.
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        router: RouterSpec = TopK(),  # noqa: B008 - frozen
        *,
        hyper: Hyper | None = None,
        shared: int = 0,
        zero: ZeroExperts | None = None,
        shared_network_layer: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Make the layer.

        Args:
            dim: width of the model.
            widths: hidden units of each expert.
            router: how experts are chosen.
            hyper: adds HyperExperts.
            shared: hidden units of a shared expert; 0: none.
            zero: zero-computation experts, which the router can choose too.
            shared_network_layer: index of this layer in a model whose layers share a hypernetwork; None: it
                has its own.
            dtype: of the parameters; a router's bias stays float32 or better. None: PyTorch's default.
            device: of the parameters, None: PyTorch's default. On "meta" they take no memory, until
                `to_empty(device=...)` and `reset_parameters()`.
        """
        super().__init__()
        if type(dim) is not int or dim < 1:
            raise ConfigError(f"MoE: dim = {dim!r}, must be an integer of at least 1")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"MoE: dtype = {dtype!r}, must be a floating-point type such as torch.bfloat16")
        spec = MoESpec(widths=tuple(widths), router=router, hyper=hyper, shared=shared, zero=zero)
        # Of a whole model whoever trains it is told once, not by every layer.
        if spec.warning is not None and shared_network_layer is None:
            warnings.warn(spec.warning, stacklevel=2)
        self.dim, self.widths, self.routed_widths = dim, spec.expert_widths, spec.routed_widths
        self.check_finite = True
        self.backend: str | None = None
        self.source: StreamedExperts | None = None
        self.experts: PlacedExperts | None
        self.register_module("experts", None)  # first, as their weights are in a layer that has them all
        with torch.device(device) if device is not None else contextlib.nullcontext():
            self._make_parts(spec, shared_network_layer)
        if dtype is not None:
            self.to(dtype)
        self.reset_parameters()

    @classmethod
    def from_spec(cls, dim: int, spec: MoESpec, place: int) -> "MoE":
        """Make the MoE layer of this number among those of a model.

        The layers of a model share its hypernetwork, if it has one.
        """
        return cls(
            dim, spec.expert_widths, spec.get_router(place), hyper=spec.hyper, shared=spec.shared,
            zero=spec.zero, shared_network_layer=place,
        )  # fmt: skip

    def _make_parts(self, spec: MoESpec, shared_network_layer: int | None) -> None:
        dim, hyper, zero = self.dim, spec.hyper, spec.zero
        self.router = RouterLayer(dim, self.routed_widths, spec.router, zero is not None and zero.true_gates)
        self.w_gate = nn.Parameter(torch.empty(sum(self.widths), dim))
        self.w_up = nn.Parameter(torch.empty(sum(self.widths), dim))
        self.w_down = nn.Parameter(torch.empty(sum(self.widths), dim))
        self.shared = SwiGLU(dim, spec.shared) if spec.shared else None
        self.zero = ZeroLayer(dim, zero, len(self.widths)) if zero else None
        self.hyper = HyperLayer(len(self.routed_widths), hyper, shared_network_layer or 0) if hyper else None
        # Layers of a model share the hypernetwork, which then belongs to the model, not to a layer.
        own = hyper if shared_network_layer is None else None
        self.hyper_network = HyperNetwork(dim, 1, own) if own else None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights; every expert's output has the same scale whatever its width."""
        if self.experts is not None:
            raise ConfigError(
                "reset_parameters: experts are placed, draw their weights before hmoe.parallelize"
            )
        self.router.reset_parameters(generator)
        nn.init.normal_(self.w_gate, std=self.dim**-0.5, generator=generator)
        nn.init.normal_(self.w_up, std=self.dim**-0.5, generator=generator)
        # By the expert's own width: else wide experts would begin louder, and the router would follow them.
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
        """Map x (..., D) to (y (..., D), Routing of the flattened tokens).

        Args:
            x: inputs.
            top_p_T: another threshold for each token than the top-p router's own, in (0, 1]: cheap and careful tokens
                in one batch.
            token_rank_T, expert_rank_E: ranks that tokens and experts live on, for a router that rectifies.
            noise_seed: for a router with noise, in training: an integer that changes with step and layer.
            real_T: boolean, False for padding: it takes no slot of a router with a capacity, nor of one whose
                experts choose.
            hyper_network: that of the model, for a layer without its own.
            decisions: which experts were chosen in an earlier pass over x, for one that repeats it
                (activation checkpointing).

        Raises:
            ConfigError: if the last axis is not `dim`, x has another type (outside autocast) or device than the
                weights, or the router cannot use what it is given.
            NonFiniteError: see `check_finite`.
        """
        check_moe_input(x, self.dim, self.router.weight)
        x_TD = x.reshape(-1, self.dim)
        ranks = self._find_ranks(x_TD, token_rank_T, expert_rank_E)
        routing = self.router(x_TD, RouterInputs(top_p_T, *ranks, noise_seed, real_T, decisions))
        if self.check_finite and not torch.compiler.is_compiling():
            raise_if_not_finite(routing.logits_TE)
        dtype = find_autocast_dtype(x.device)
        x_TD = x_TD if dtype is None else x_TD.to(dtype)
        if self.experts is None:
            y_TD, shared_TD = self.run_experts(x_TD, routing), None
        else:  # which computes the shared expert while tokens travel
            y_TD, shared_TD = self.experts(x_TD, routing, self.shared, self.backend)
        y_TD = self._add_extras(x_TD, y_TD, shared_TD, routing, hyper_network)
        return y_TD.view(x.shape), guard_reentrant(routing) if self.training else routing

    @property
    def local_experts(self) -> Sequence[int]:
        """Experts whose rows of the weights live in this process: all, unless `hmoe.parallelize` placed them."""
        return range(len(self.widths)) if self.experts is None else self.experts.local_experts

    def _find_ranks(
        self, x_TD: torch.Tensor, token_rank_T: torch.Tensor | None, expert_rank_E: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the ranks given, or where experts are placed those of the processes, if the router asks for any."""
        if self.experts is None or not self.router.spec.uses_ranks or self.experts.exact:
            return token_rank_T, expert_rank_E
        own = self.experts.list_ranks(len(x_TD), len(self.routed_widths), x_TD.device)
        given = (token_rank_T, expert_rank_E)
        return tuple(o if g is None else g for o, g in zip(own, given, strict=True))  # type: ignore[return-value]

    def run_experts(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return the sum of each token's routed experts times their gates (T, D), in the type of x.

        The one place between routing and kernels where all experts are this process's.
        """
        pairs = (routing.token_N, routing.gate_N, routing.num_tokens_E[: len(self.widths)])
        dtype = find_autocast_dtype(x_TD.device)
        if self.source is not None:
            if dtype is None:
                check_same_dtype(x_TD, self.w_gate)
            with disable_autocast(x_TD.device):
                return stream_experts(x_TD, *pairs, self.widths, self.source)
        # Under autocast weights are converted once for all experts; the kernels then compute in the type of x.
        weights = (self.w_gate, self.w_up, self.w_down)
        w_gate, w_up, w_down = (w if dtype is None else w.to(dtype) for w in weights)
        check_same_dtype(x_TD, w_gate)
        with disable_autocast(x_TD.device):
            return expert_ffn(x_TD, *pairs, w_gate, w_up, w_down, self.widths, self.backend)

    def _add_extras(
        self,
        x_TD: torch.Tensor,
        y_TD: torch.Tensor,
        shared_TD: torch.Tensor | None,
        routing: Routing,
        network: HyperNetwork | None,
    ) -> torch.Tensor:
        """Add what the other parts of the layer give; the shared expert's part may be known already."""
        if self.zero is not None:
            y_TD = y_TD + self.zero(x_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + (self.shared(x_TD) if shared_TD is None else shared_TD)
        if network is not None and (self.hyper is None or self.hyper_network is not None):
            has = "no HyperExperts" if self.hyper is None else "a hypernetwork of its own"
            raise ConfigError(f"MoE: hyper_network has no effect, this layer has {has}; leave it out")
        if self.hyper is not None:
            network = self.hyper_network or network
            if network is None:
                raise ConfigError("MoE: hyper_network is missing, this layer shares the model's")
            y_TD = y_TD + self.hyper(x_TD, find_selected(routing), network)
        return y_TD

    def expert(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return writable views of expert i: w_gate (h_i, D), w_up (h_i, D), w_down (D, h_i).

        As in a Python list, -1 is the last expert.

        Raises:
            IndexError: if there is no such expert.
            ConfigError: if its weights are in another process (`hmoe.parallelize`).
        """
        return slice_expert(self, i, [w.data for w in list_expert_weights(self, i)])

    def expert_grad(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of expert i, shaped as `expert(i)`; zeros if no token came.

        Raises:
            IndexError, ConfigError: as `expert`.
            RuntimeError: before a backward pass.
        """
        weights = list_expert_weights(self, i)
        if not weights[0].requires_grad:
            raise RuntimeError("expert_grad: the experts' weights take no gradients (requires_grad is False)")
        grads = [w.grad for w in weights if w.grad is not None]
        if len(grads) < len(weights):
            raise RuntimeError("expert_grad: no gradients yet, run backward() first")
        return slice_expert(self, i, grads)

    def __repr__(self) -> str:
        """Return one line, also inside of print(model): PyTorch's own would list every part of every layer."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Return what print(model) shows."""
        return describe_layer(self)
