"""`config.json` of a heterogeneous mixture of experts, under Hugging Face's names where there are such."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hmoe.errors import ConfigError
from hmoe.specs.hugging_face import DEFAULTS, read_hf_spec
from hmoe.specs.model import ModelSpec, MoESpec
from hmoe.specs.routers.base import RouterSpec
from hmoe.specs.widths import arithmetic


@strict
class HMoEConfig(PreTrainedConfig):
    """Configuration of HMoEModel; the defaults are the paper's 0.4B model with top-2 routing.

    Args (those that other models do not have):
        expert_widths: hidden units of each expert; [] for a dense model, None for eight widths in arithmetic
            progression with 16 hidden units in all per unit of hidden_size.
        dense_layers: layers, from 0, with a dense feed-forward layer of width dense_intermediate_size.
        router_type: top_k (num_experts_per_tok), top_p (router_top_p) or expert_choice, with router_options
            as in `hmoe.TopK`, `hmoe.TopP`, `hmoe.ExpertChoice`.
        shared_expert_width: hidden units of an expert that serves every token.
        expert_skip: per MoE layer the share of the best expert's score below which others are left out in
            evaluation.
        zero_experts, hyper_experts: options of `hmoe.ZeroExperts` and `hmoe.Hyper`; None: there are none.
        norm_topk_prob: gates are renormalised over the chosen experts.
        qk_norm: RMSNorm of queries and keys, "head": over each head, "width": over all heads together.
        load_balance_coef, parameter_penalty_coef, router_entropy_coef, router_z_coef: auxiliary losses (HMoE
            eq 3, 4, 5 and ST-MoE's), added to the loss if output_router_logits is set, as transformers does.
        penalty_norm, entropy_scale: see `hmoe.parameter_penalty`, `hmoe.router_entropy`.
        training_rules: what else hmoe's trainer did, as under `model.moe` of a recipe; not applied here.
        other_loss_coefs: of losses that `hmoe.register_loss` added, by name.

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
    other_loss_coefs: dict[str, float] | None = None
    training_rules: dict[str, Any] | None = None
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
        """Raise ValueError for values that make no model; called by transformers."""
        if any(type(width) is not int or width < 1 for width in self.expert_widths):
            raise ConfigError(f"expert_widths = {self.expert_widths}, must be integers of at least 1")
        _ = self.structure

    @property
    def num_experts(self) -> int:
        """Experts per layer."""
        return len(self.expert_widths)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers with experts."""
        return self.structure.moe_layers

    @property
    def router(self) -> RouterSpec | None:
        """How experts are chosen; None: a dense model."""
        return None if self.moe is None else self.moe.router

    @property
    def moe(self) -> MoESpec | None:
        """Experts, router and losses; None: a dense model."""
        return self.structure.moe

    @property
    def structure(self) -> ModelSpec:
        """The model that this configuration describes."""
        keys = {key: getattr(self, key) for key in DEFAULTS}
        return read_hf_spec(keys | {"rope_parameters": self.rope_parameters})
