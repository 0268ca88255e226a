"""What a model is, as one frozen value: a LLaMA decoder whose feed-forward layers are dense or mixtures of experts."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.experts import Hyper, ZeroExperts, append_zero_widths
from hmoe.specs.extensions import hint_extensions
from hmoe.specs.fields import WRITTEN_WHERE_SET, Each, Range, Real, Spec, Whole
from hmoe.specs.losses import LOSSES
from hmoe.specs.rope import RopeScaling
from hmoe.specs.routers import ROUTERS
from hmoe.specs.routers.base import RouterSpec, describe_constant_gates
from hmoe.specs.routers.top_k import TopK
from hmoe.specs.widths import WidthRule

_WIDTHS = Each(Whole(1, 10**7), least=1)
COEFFICIENT = Real(1e6, zero=True)


class _Widths(Range):
    """A list of widths or a rule: pydantic chooses by what was written, so that its complaint is about that."""

    def describe_fault(self, value: Any) -> str | None:
        """Return what the value must be, or None if it is right."""
        return (
            None if isinstance(value, WidthRule | tuple) else "must be a list of hidden units or a WidthRule"
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        choices = {
            "rule": handler.generate_schema(WidthRule),  # type: ignore[attr-defined]
            "list": handler.generate_schema(Annotated[tuple[int, ...], _WIDTHS]),  # type: ignore[attr-defined]
        }
        return {"type": "tagged-union", "choices": choices, "discriminator": _tag_widths}


def _tag_widths(value: Any) -> str:
    return "rule" if isinstance(value, dict | WidthRule) else "list"


class _Router(Range):
    """A router of any kind that is known when pydantic builds its schema.

    `hmoe.config.recipes` builds it anew for new kinds.
    """

    def describe_fault(self, value: Any) -> str | None:
        """Return what the value must be, or None if it is right."""
        # By name: exported code may hold a class twice.
        return (
            None if getattr(value, "name", None) in ROUTERS else "must be a router spec such as hmoe.TopK(2)"
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        choices = {name: handler.generate_schema(kind) for name, kind in ROUTERS.items()}  # type: ignore[attr-defined]
        return {"type": "tagged-union", "choices": choices, "discriminator": "name"}


@dataclass(frozen=True, kw_only=True)
class MoESpec(Spec):
    """Experts, router and auxiliary losses (coefficients; 0 switches a loss off).

    Attributes:
        widths: a list of hidden units per expert, or a rule.
        router: how experts are chosen.
        shared: hidden units of an expert that serves every token (DeepSeekMoE); 0: none.
        zero: experts without hidden units; see `hmoe.ZeroExperts`.
        skip: per MoE layer `router.skip`, as `hmoe upcycle` measures it; []: router.skip for all.
        hyper: HyperExperts, see `hmoe.Hyper`.
        dense_layers: layers, from 0, with a dense FFN of width model.ffn.
        load_balance: HMoE eq 3; the paper's equal experts: 1e-2.
        parameter_penalty: HMoE eq 4; the paper's unequal experts: 0.1.
        penalty_norm: widths are divided by this in eq 4.
        router_entropy: HMoE eq 5; the paper's top-p: 3e-2.
        entropy_scale: factor in eq 5: number of experts, or 1.
        router_z: mean squared logsumexp of router logits.
        statistics: loads in losses are a micro-batch's own, or the batch's up to and with it.
        losses: coefficients of losses that `hmoe.register_loss` added, by name.

    Raises:
        ConfigError: for values out of range, or that do not fit together.
    """

    widths: Annotated[tuple[int, ...] | WidthRule, _Widths()]
    router: Annotated[RouterSpec, _Router()] = TopK()  # noqa: RUF009 - frozen
    shared: Annotated[int, Whole(0, 10**7)] = 0
    zero: ZeroExperts | None = None
    skip: Annotated[tuple[float, ...], Each(Real(1, zero=True))] = ()
    hyper: Hyper | None = None
    dense_layers: Annotated[tuple[int, ...], Each(Whole(0))] = ()
    load_balance: Annotated[float, COEFFICIENT] = 0.0
    parameter_penalty: Annotated[float, COEFFICIENT] = 0.0
    penalty_norm: Literal["mean", "max", "raw"] = "mean"
    router_entropy: Annotated[float, COEFFICIENT] = 0.0
    entropy_scale: Literal["experts", "one"] = "experts"
    router_z: Annotated[float, COEFFICIENT] = 0.0
    statistics: Literal["micro", "batch"] = field(default="micro", metadata=WRITTEN_WHERE_SET)
    losses: Annotated[dict[str, float], Each(COEFFICIENT)] = field(default_factory=dict, hash=False)
    section: ClassVar[str] = "moe"

    def __post_init__(self) -> None:
        for name in ("widths", "skip", "dense_layers"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @property
    def expert_widths(self) -> tuple[int, ...]:
        """Hidden units of each expert."""
        return self.widths.expand() if isinstance(self.widths, WidthRule) else self.widths

    @property
    def routed_widths(self) -> tuple[int, ...]:
        """Hidden units of everything that the router chooses from: zero-computation experts have none."""
        return append_zero_widths(self.expert_widths, self.zero)

    @property
    def warning(self) -> str | None:
        """What should be said before training with this router, or None."""
        return describe_constant_gates(self.router, len(self.routed_widths))

    @property
    def balance_weights(self) -> tuple[float, ...] | None:
        """What multiplies each expert's term of the load-balancing loss; None: 1."""
        if self.zero is None or self.zero.balance == 1:
            return None
        return tuple(1.0 if width else self.zero.balance for width in self.routed_widths)

    def get_coefficient(self, name: str) -> float:
        """Return what an auxiliary loss is multiplied by."""
        return float(getattr(self, name)) if LOSSES[name].built_in else self.losses.get(name, 0.0)

    def get_router(self, place: int) -> RouterSpec:
        """Return the router of the MoE layer of this number among them.

        It has its own share of `skip`, if there are shares.

        Raises:
            ConfigError: if the router has no use for them.
        """
        share = self.skip[place] if self.skip else 0.0
        return self.router.with_skip(share) if share else self.router

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together."""
        if isinstance(self.widths, tuple):
            self._check_widths(self.widths)
        self.router.check_experts(len(self.routed_widths))
        for router in {self.router, *(self.get_router(place) for place in range(len(self.skip)))}:
            for extra in (self.zero, self.hyper):
                if extra is not None:
                    extra.check_router(router)
        if self.router.constant_load:
            self.refuse_unused("with experts that choose equally many tokens: it is constant", "load_balance")
        for loss in LOSSES.values():
            if loss.option is not None and self.get_coefficient(loss.name) == 0:
                self.refuse_unused(f"while {loss.name} is 0", loss.option)
        if not (self.load_balance or self.parameter_penalty or any(self.losses.values())):
            self.refuse_unused("while no loss with a coefficient counts loads", "statistics")
        for name in self.losses:
            if name not in LOSSES or LOSSES[name].built_in:
                known = (
                    ", ".join(loss.name for loss in LOSSES.values() if not loss.built_in)
                    or "none is registered"
                )
                raise ConfigError(f"moe.losses.{name}: no such loss ({known}); {hint_extensions()}")
            if name in list_unequal_only(self) and len(set(self.routed_widths)) == 1:
                raise ConfigError(
                    f"moe.losses.{name} has no effect with equally wide experts: it is constant; remove it"
                )

    def _check_widths(self, widths: tuple[int, ...]) -> None:
        if not widths:
            raise ConfigError("moe.widths = [], must have at least one expert")
        for index, width in enumerate(widths):
            fault = _WIDTHS.range.describe_fault(width)
            if fault is not None:
                raise ConfigError(f"moe.widths.{index} = {width!r}, {fault}")


def list_unequal_only(moe: MoESpec) -> list[str]:
    """Return the losses of one's own that are on and constant where all experts are equally wide."""
    return [name for name, value in moe.losses.items() if value and LOSSES[name].unequal_only]


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """A LLaMA decoder whose feed-forward layers are dense or mixtures of experts.

    Attributes:
        dim: model width.
        layers: decoder blocks.
        heads: query heads.
        kv_heads: key/value heads; null: as many as heads.
        head_dim: width of a head; null: dim / heads.
        qk_norm: RMSNorm of queries and keys: over each head, as Qwen3, or all heads together, as OLMoE.
        vocab: token ids.
        ffn: hidden units of dense feed-forward layers.
        tied: the output head is the input embedding.
        rope_theta: base of the rotary angles.
        rope_scaling: rotary angles for texts longer than trained on; see `hmoe.specs.rope`.
        norm_eps: epsilon of RMSNorm.
        context: tokens it is made to read at once; null: data.sequence_length.
        moe: null: a dense model.

    Raises:
        ConfigError: for values out of range, or that do not fit together.
    """

    dim: Annotated[int, Whole(2, 65536)]
    layers: Annotated[int, Whole(1, 1024)]
    heads: Annotated[int, Whole(1, 1024)]
    kv_heads: Annotated[int | None, Whole(1, 1024)] = None
    head_dim: Annotated[int | None, Whole(2, 65536)] = None
    qk_norm: Literal["head", "width"] | None = None
    vocab: Annotated[int, Whole(2, 2**24)]
    ffn: Annotated[int | None, Whole(1, 10**7)] = None
    tied: bool = False
    rope_theta: Annotated[float, Real(1e12, zero=False)] = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: Annotated[float, Real(1, zero=False)] = 1e-5
    context: Annotated[int | None, Whole(1, 2**30)] = None
    moe: MoESpec | None = None
    section: ClassVar[str] = "model"

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @functools.cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are mixtures of experts."""
        return (
            () if self.moe is None else tuple(i for i in range(self.layers) if i not in self.moe.dense_layers)
        )

    @property
    def causal(self) -> bool:
        """Whether a token's output depends on it and earlier tokens only; else the model cannot generate."""
        return self.moe is None or self.moe.router.causal

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together."""
        if self.head_dim is None and self.dim % self.heads:
            raise ConfigError(
                f"model: dim = {self.dim} with heads = {self.heads}: dim / heads must be an integer, or give head_dim"
            )
        if self.head_width % 2:
            raise ConfigError(
                f"model: head width = {self.head_width}: must be even (rotary pairs); "
                f"nearest is head_dim = {self.head_width + 1}"
            )
        if self.heads % self.num_kv_heads:
            raise ConfigError(f"model: kv_heads = {self.kv_heads}: must divide heads = {self.heads}")
        self._check_layers()
        needs_ffn = self.moe is None or bool(self.moe.dense_layers)
        if needs_ffn and self.ffn is None:
            raise ConfigError("model: ffn: missing, dense layers need their width")
        if not needs_ffn:
            self.refuse_unused("when every layer is a mixture of experts", "ffn")

    def _check_layers(self) -> None:
        """Raise ConfigError for dense layers, skips or balance weights that do not fit the model."""
        if self.moe is None:
            return
        if self.moe.balance_weights is not None and self.moe.load_balance == 0:
            raise ConfigError("moe: zero.balance has no effect while load_balance is 0; remove it")
        dense, skip = self.moe.dense_layers, self.moe.skip
        if len(set(dense)) != len(dense) or any(i >= self.layers for i in dense):
            raise ConfigError(
                f"model: moe.dense_layers = {list(dense)}: must be distinct layers from 0 to {self.layers - 1}"
            )
        if len(dense) == self.layers:
            raise ConfigError(
                "model: moe.dense_layers names every layer; write `moe: null` for a dense model"
            )
        if skip and len(skip) != len(self.moe_layers):
            raise ConfigError(
                f"model: moe.skip: {len(skip)} numbers, must be one for each of the {len(self.moe_layers)} MoE layers"
            )
        if skip and not any(skip):
            raise ConfigError("model: moe.skip: only zeros have no effect; remove it")
