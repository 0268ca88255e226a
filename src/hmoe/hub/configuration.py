"""`config.json` of a heterogeneous mixture of experts, under Hugging Face's names where there are such."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hmoe.errors import ConfigError
from hmoe.specs.experts import Hyper, ZeroExperts, routed_widths
from hmoe.specs.rope import RopeScaling, from_hugging_face
from hmoe.specs.routers import NAMES, ExpertChoice, Router, TopK, TopP, of_layer
from hmoe.specs.widths import arithmetic

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Experts:
    """`hmoe.config.model.MoEConfig` without pydantic; a class that torch.compile can trace."""

    expert_widths: tuple[int, ...]
    router: Router
    skip: tuple[float, ...]
    shared: int
    zero: ZeroExperts | None
    hyper: Hyper | None
    load_balance: float
    parameter_penalty: float
    penalty_norm: str
    router_entropy: float
    entropy_scale: str
    router_z: float

    @property
    def routed_widths(self) -> tuple[int, ...]:
        """See MoEConfig."""
        return routed_widths(self.expert_widths, self.zero)


def _made(kind: type[Spec], name: str, options: dict[str, Any]) -> Spec:
    """A frozen spec from its options."""
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"{name} = {options}: {str(error).removeprefix(f'{kind.__name__}.__init__() ')}") from None


@strict
class HMoEConfig(PreTrainedConfig):
    """Configuration of HMoEModel; the defaults are the paper's 0.4B model with top-2 routing.

    Args (those that other models do not have):
        expert_widths: hidden units of each expert; [] for a dense model, None for eight widths in arithmetic progression
            with 16 hidden units in all per unit of hidden_size.
        dense_layers: layers, from 0, with a dense feed-forward layer of width dense_intermediate_size.
        router_type: top_k (num_experts_per_tok), top_p (router_top_p) or expert_choice, with router_options as in `hmoe.TopK`,
            `hmoe.TopP`, `hmoe.ExpertChoice`.
        shared_expert_width: hidden units of an expert that serves every token.
        expert_skip: per MoE layer the share of the best expert's score below which others are left out in evaluation.
        zero_experts, hyper_experts: options of `hmoe.ZeroExperts` and `hmoe.Hyper`; None: there are none.
        norm_topk_prob: gates are renormalised over the chosen experts.
        qk_norm: RMSNorm of queries and keys, "head": over each head, "width": over all heads together.
        load_balance_coef, parameter_penalty_coef, router_entropy_coef, router_z_coef: auxiliary losses (HMoE eq 3, 4, 5 and
            ST-MoE's), added to the loss when output_router_logits is set, as transformers does.
        penalty_norm, entropy_scale: see `hmoe.parameter_penalty`, `hmoe.router_entropy`.

    Raises:
        ValueError: for values that do not fit together.
    """

    model_type = "hmoe"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    qk_norm: str | None = None
    expert_widths: Any = None
    dense_layers: Any = None
    dense_intermediate_size: int | None = None
    router_type: str = "top_k"
    num_experts_per_tok: int = 2
    router_top_p: float = 0.6
    norm_topk_prob: bool = True
    router_options: dict[str, Any] | None = None
    shared_expert_width: int = 0
    expert_skip: list[float] | None = None
    zero_experts: dict[str, Any] | None = None
    hyper_experts: dict[str, Any] | None = None
    load_balance_coef: float = 0.0
    parameter_penalty_coef: float = 0.1
    penalty_norm: str = "mean"
    router_entropy_coef: float = 0.0
    entropy_scale: str = "experts"
    router_z_coef: float = 0.0
    output_router_logits: bool = False
    max_position_embeddings: int = 4096
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_dropout: float | int = 0.0
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.expert_widths is None:
            self.expert_widths = arithmetic(16 * self.hidden_size, 8)
        self.expert_widths = list(self.expert_widths)
        self.dense_layers = list(self.dense_layers or ())
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """What a model of these values needs; called by transformers."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}, must be even and at least 2 (rotary pairs)")
        if any(type(width) is not int or width < 1 for width in self.expert_widths):
            raise ValueError(f"expert_widths = {self.expert_widths}, must be integers of at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads = {self.num_key_value_heads} must divide num_attention_heads = {self.num_attention_heads}"
            )
        if self.qk_norm not in (None, "head", "width"):
            raise ValueError(f"qk_norm = {self.qk_norm!r}, must be null, head or width")
        if any(not 0 <= layer < self.num_hidden_layers for layer in self.dense_layers):
            raise ValueError(f"dense_layers = {self.dense_layers}, must be from 0 to {self.num_hidden_layers - 1}")
        if len(self.moe_layers) < self.num_hidden_layers and self.dense_intermediate_size is None:
            raise ValueError("dense_intermediate_size: missing, dense layers need their width")
        if len(self.moe_layers) == self.num_hidden_layers and self.dense_intermediate_size is not None:
            raise ValueError("dense_intermediate_size has no effect when every layer has experts; remove it")
        for name, known in (("penalty_norm", ("mean", "max", "raw")), ("entropy_scale", ("experts", "one"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}, must be one of {', '.join(known)}")
        self._validate_experts()

    def _validate_experts(self) -> None:
        if self.shared_expert_width < 0:
            raise ValueError(f"shared_expert_width = {self.shared_expert_width}, must be at least 0")
        if self.expert_widths:
            self.router.check(len(self.moe.routed_widths))
            if self.moe.skip and len(self.moe.skip) != len(self.moe_layers):
                raise ValueError(
                    f"expert_skip has {len(self.moe.skip)} numbers, must have one for each of {len(self.moe_layers)} layers"
                )
            routers = [of_layer(self.router, self.moe.skip, place) for place in range(len(self.moe.skip))]
            for beside in (self.moe.zero, self.moe.hyper):
                for router in (self.router, *routers):
                    if beside is not None:
                        beside.check(router)
            return
        for name in ("router_options", "expert_skip", "shared_expert_width", "zero_experts", "hyper_experts"):
            if getattr(self, name):
                raise ValueError(f"{name} has no effect without experts (expert_widths = []); remove it")

    @property
    def num_experts(self) -> int:
        """Experts per layer."""
        return len(self.expert_widths)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers with experts."""
        if not self.expert_widths:
            return ()
        return tuple(i for i in range(self.num_hidden_layers) if i not in self.dense_layers)

    @property
    def router(self) -> Router:
        """The router's spec."""
        options = self.router_options or {}
        plain = {"renormalize": self.norm_topk_prob}
        if self.router_type == "top_k":
            return _made(TopK, "router_options", {"k": self.num_experts_per_tok, **plain, **options})
        if self.router_type == "top_p":
            return _made(TopP, "router_options", {"p": self.router_top_p, **plain, **options})
        if self.router_type == "expert_choice":
            return _made(ExpertChoice, "router_options", options)
        raise ConfigError(f"router_type = {self.router_type!r}, must be one of {', '.join(NAMES)}")

    @property
    def rope_scaling_spec(self) -> RopeScaling | None:
        """Stretched rotary positions, None for plain ones."""
        return from_hugging_face(self.rope_parameters or {}, self.max_position_embeddings)

    @property
    def moe(self) -> Any:
        """Experts, router and losses; None: a dense model."""
        if not self.expert_widths:
            return None
        zero, hyper = self.zero_experts, self.hyper_experts
        return Experts(
            tuple(self.expert_widths), self.router, tuple(self.expert_skip or ()), self.shared_expert_width,
            None if zero is None else _made(ZeroExperts, "zero_experts", zero),
            None if hyper is None else _made(Hyper, "hyper_experts", hyper),
            self.load_balance_coef, self.parameter_penalty_coef, self.penalty_norm,
            self.router_entropy_coef, self.entropy_scale, self.router_z_coef,
        )  # fmt: skip

    @property
    def structure(self) -> Any:
        """The same under the names that `hmoe.model` knows (`hmoe.config.model.ModelConfig`), without pydantic."""
        return SimpleNamespace(
            dim=self.hidden_size, layers=self.num_hidden_layers, heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads, head_width=self.head_dim, qk_norm=self.qk_norm, vocab=self.vocab_size,
            ffn=self.dense_intermediate_size, tied=self.tie_word_embeddings, norm_eps=self.rms_norm_eps, moe=self.moe,
            moe_layers=self.moe_layers, rope_theta=(self.rope_parameters or {}).get("rope_theta", 10_000.0),
            rope_scaling=self.rope_scaling_spec,
        )  # fmt: skip
