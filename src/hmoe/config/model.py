"""The keys under `model`: what a LLaMA decoder with dense and mixture-of-experts layers can look like."""

import functools
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from hmoe.config.section import Section
from hmoe.specs import widths as sizes
from hmoe.specs.experts import Hyper, ZeroExperts, routed_widths
from hmoe.specs.rope import RopeScaling
from hmoe.specs.routers import Router, TopK, describe_constant_gates, of_layer

LOSS_KEYS = ("load_balance", "parameter_penalty", "penalty_norm", "router_entropy", "entropy_scale", "router_z")
Coefficient = Annotated[float, Field(ge=0, le=1e6)]
ExpertWidth = Annotated[int, Field(ge=1, le=10**7)]


class WidthRule(Section):
    """Expert widths by rule; see `hmoe.specs.widths`."""

    shape: Annotated[
        Literal["arithmetic", "geometric", "hybrid", "equal"], Field(description="see `hmoe.specs.widths`")
    ]
    total: Annotated[int, Field(ge=1, le=10**8, description="hidden units of all experts of a layer together")]
    experts: Annotated[int, Field(ge=1, le=4096, description="number of experts")]
    ratio: Annotated[float | None, Field(description="largest / smallest width; arithmetic 23/9, geometric 128")] = None
    multiple: Annotated[int, Field(ge=1, le=4096, description="every width is a multiple of this")] = 1

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a frozen value; read several times per training step
    def widths(self) -> tuple[int, ...]:
        """The widths, ascending, of exact sum `total`."""
        if self.shape == "equal":
            return sizes.equal(self.total, self.experts)
        options: dict[str, Any] = {} if self.ratio is None else {"ratio": self.ratio}
        rule = getattr(sizes, self.shape)
        result: tuple[int, ...] = rule(self.total, self.experts, multiple=self.multiple, **options)
        return result

    @model_validator(mode="after")
    def _check(self) -> "WidthRule":
        if self.shape in ("hybrid", "equal"):
            self.no_effect(f"with {self.shape} widths", "ratio")
        if self.shape == "equal":
            self.no_effect("with equal widths", "multiple")
        self.widths()
        return self


Widths = Annotated[
    Annotated[WidthRule, Tag("rule")]
    | Annotated[tuple[ExpertWidth, ...], Tag("list"), Field(min_length=1, max_length=4096)],
    Discriminator(lambda value: "rule" if isinstance(value, dict | WidthRule) else "list"),
]


class MoEConfig(Section):
    """Experts, router and auxiliary losses (coefficients; 0 switches a loss off)."""

    widths: Annotated[Widths, Field(description="a list of hidden units per expert, or a rule")]
    router: Annotated[Router, Field(discriminator="name", description="how experts are chosen")] = TopK()
    shared: Annotated[
        int,
        Field(ge=0, le=10**7, description="hidden units of an expert that serves every token (DeepSeekMoE); 0: none"),
    ] = 0
    zero: Annotated[ZeroExperts | None, Field(description="experts without hidden units; see `hmoe.ZeroExperts`")] = (
        None
    )
    skip: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...],
        Field(description="per MoE layer `router.skip`, as `hmoe upcycle --skip` measures it; []: router.skip for all"),
    ] = ()
    hyper: Annotated[Hyper | None, Field(description="HyperExperts, see `hmoe.Hyper`")] = None
    dense_layers: Annotated[
        tuple[int, ...], Field(description="layers, from 0, with a dense FFN of width model.ffn")
    ] = ()
    load_balance: Annotated[Coefficient, Field(description="HMoE eq 3; the paper's equal experts: 1e-2")] = 0.0
    parameter_penalty: Annotated[Coefficient, Field(description="HMoE eq 4; the paper's unequal experts: 0.1")] = 0.0
    penalty_norm: Annotated[Literal["mean", "max", "raw"], Field(description="widths are divided by this in eq 4")] = (
        "mean"
    )
    router_entropy: Annotated[Coefficient, Field(description="HMoE eq 5; the paper's top-p: 3e-2")] = 0.0
    entropy_scale: Annotated[
        Literal["experts", "one"], Field(description="factor in eq 5: number of experts, or 1")
    ] = "experts"
    router_z: Annotated[Coefficient, Field(description="mean squared logsumexp of router logits")] = 0.0

    @property
    def expert_widths(self) -> tuple[int, ...]:
        """Hidden units of each expert."""
        return self.widths.widths() if isinstance(self.widths, WidthRule) else self.widths

    @property
    def routed_widths(self) -> tuple[int, ...]:
        """Hidden units of everything that the router chooses from: zero-computation experts have none."""
        return routed_widths(self.expert_widths, self.zero)

    @property
    def note(self) -> str | None:
        """What should be said before training with this router, or None."""
        return describe_constant_gates(self.router, len(self.routed_widths))

    @model_validator(mode="after")
    def _check(self) -> "MoEConfig":
        self.router.check(len(self.routed_widths))
        if self.zero is not None:
            self.zero.check(self.router)
        if self.hyper is not None:
            self.hyper.check(self.router)
        if self.zero is not None and self.zero.balance != 1 and self.load_balance == 0:
            raise ValueError("zero.balance has no effect while load_balance is 0; remove it")
        if self.router.name == "expert_choice" and self.router.capacity_by == "equal":
            self.no_effect("with experts that choose equally many tokens: it is constant", "load_balance")
        if self.parameter_penalty == 0:
            self.no_effect("while parameter_penalty is 0", "penalty_norm")
        if self.router_entropy == 0:
            self.no_effect("while router_entropy is 0", "entropy_scale")
        return self


class ModelConfig(Section):
    """A LLaMA decoder whose feed-forward layers are dense or mixtures of experts."""

    dim: Annotated[int, Field(ge=2, le=65536, description="model width")]
    layers: Annotated[int, Field(ge=1, le=1024, description="decoder blocks")]
    heads: Annotated[int, Field(ge=1, le=1024, description="query heads")]
    kv_heads: Annotated[int | None, Field(ge=1, le=1024, description="key/value heads; null: as many as heads")] = None
    head_dim: Annotated[int | None, Field(ge=2, le=65536, description="width of a head; null: dim / heads")] = None
    qk_norm: Annotated[
        Literal["head", "width"] | None,
        Field(description="RMSNorm of queries and keys: over each head, as Qwen3, or all heads together, as OLMoE"),
    ] = None
    vocab: Annotated[int, Field(ge=2, le=2**24, description="token ids")]
    ffn: Annotated[int | None, Field(ge=1, le=10**7, description="hidden units of dense feed-forward layers")] = None
    tied: Annotated[bool, Field(description="the output head is the input embedding")] = False
    rope_theta: Annotated[float, Field(gt=0, le=1e12, description="base of the rotary angles")] = 10_000.0
    rope_scaling: Annotated[
        RopeScaling | None, Field(description="rotary angles for texts longer than trained on; see `hmoe.specs.rope`")
    ] = None
    norm_eps: Annotated[float, Field(gt=0, le=1, description="epsilon of RMSNorm")] = 1e-5
    context: Annotated[
        int | None, Field(ge=1, le=2**30, description="tokens it is made to read at once; null: data.sequence_length")
    ] = None
    moe: Annotated[MoEConfig | None, Field(description="null: a dense model")] = None

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are mixtures of experts."""
        return () if self.moe is None else tuple(i for i in range(self.layers) if i not in self.moe.dense_layers)

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(
                f"dim = {self.dim} with heads = {self.heads}: dim / heads must be an integer, or give head_dim"
            )
        if self.head_width % 2:
            raise ValueError(
                f"head width = {self.head_width}: must be even (rotary pairs); nearest is head_dim = {self.head_width + 1}"
            )
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads}: must divide heads = {self.heads}")
        dense = () if self.moe is None else self.moe.dense_layers
        if len(set(dense)) != len(dense) or any(not 0 <= i < self.layers for i in dense):
            raise ValueError(f"moe.dense_layers = {list(dense)}: must be distinct layers from 0 to {self.layers - 1}")
        if self.moe is not None and len(dense) == self.layers:
            raise ValueError("moe.dense_layers names every layer; write `moe: null` for a dense model")
        skip = () if self.moe is None else self.moe.skip
        if skip and len(skip) != len(self.moe_layers):
            raise ValueError(
                f"moe.skip: {len(skip)} numbers, must be one for each of the {len(self.moe_layers)} MoE layers"
            )
        if skip and not any(skip):
            raise ValueError("moe.skip: only zeros have no effect; remove it")
        if self.moe is not None:
            for place in range(len(skip)):
                router = of_layer(self.moe.router, skip, place)
                for beside in (self.moe.zero, self.moe.hyper):
                    if beside is not None:
                        beside.check(router)
        needs_ffn = self.moe is None or bool(dense)
        if needs_ffn and self.ffn is None:
            raise ValueError("ffn: missing, dense layers need their width")
        if not needs_ffn:
            self.no_effect("when every layer is a mixture of experts", "ffn")
        return self
