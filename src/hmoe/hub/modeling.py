"""The Hugging Face classes: the blocks of `hmoe.model`, amid transformers' caches, masks and attention."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils import can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hmoe.hub.configuration import HMoEConfig
from hmoe.hub.context import HuggingFaceContext
from hmoe.hub.padding import select_real_tokens
from hmoe.model.attention import Attention, Context
from hmoe.model.hyper import HyperLayer, HyperNetwork
from hmoe.model.layers import RMSNorm, SwiGLU
from hmoe.model.losses import compute_auxiliary_losses, sum_weighted_losses
from hmoe.model.memory import align_memory
from hmoe.model.moe import MoE
from hmoe.model.rotary import Rotary, compute_rotary
from hmoe.model.router import RouterLayer, route_tokens
from hmoe.model.transformer import Block, check_causal, set_check_finite, without_capacities
from hmoe.model.zero import ZeroLayer

logger = logging.get_logger(__name__)
_RENAMED = "cache" in MoeModelOutputWithPast.__dataclass_fields__  # past_key_values until transformers 5.24
_CACHE = "cache" if _RENAMED else "past_key_values"


def _both_names(forward: Any) -> Any:
    """Let `past_key_values` go on working, with transformers' warning where it is deprecated."""
    return deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")(forward) if _RENAMED else forward


class HMoEDecoderLayer(GradientCheckpointingLayer, Block):
    """`hmoe.model`'s block; it hands out the router's logits alone, as checkpointing keeps tensors only."""

    def forward(  # type: ignore[override]
        self, x_BLD: torch.Tensor, rotary: Rotary, context: Context, network: HyperNetwork | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (x (B, L, D), router logits (T, E) or None)."""
        x_BLD, routing = Block.forward(self, x_BLD, rotary, context, network)
        return x_BLD, None if routing is None else routing.logits_TE


class HMoEPreTrainedModel(PreTrainedModel):
    """What all HMoE models share; random weights are normal with standard deviation `initializer_range`."""

    config: HMoEConfig
    config_class = HMoEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HMoEDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _keep_in_fp32_modules_strict = {"bias_E"}  # of a router that balances by it; see `RouterLayer`
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(HMoEDecoderLayer, index=0),
        "attentions": OutputRecorder(Attention, index=1),
    }

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers; weights on the CPU are copied out into aligned memory."""
        loaded = super().from_pretrained(*args, **kwargs)
        align_memory(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MoE | SwiGLU | RouterLayer | ZeroLayer | HyperLayer):
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias_E":
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, HyperNetwork):
            module.reset_heads()


class HMoEModel(HMoEPreTrainedModel):
    """The decoder without head returns the last norm's output and one router_logits per MoE layer.

    It takes `input_ids` or `inputs_embeds`.
    """

    def __init__(self, config: HMoEConfig) -> None:
        super().__init__(config)
        structure = config.structure
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            HMoEDecoderLayer(structure, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        hyper = None if structure.moe is None else structure.moe.hyper
        self.hyper_network = (
            None if hyper is None else HyperNetwork(config.hidden_size, len(config.moe_layers), hyper)
        )
        self._noisy = structure.moe is not None and structure.moe.router.needs_noise
        self._limited = structure.moe is not None and (
            structure.moe.router.has_capacity
            or not structure.moe.router.causal  # padding takes no place there
        )
        self._rope = (structure.head_width, structure.rope_theta, structure.rope_scaling)
        for attention in (module for module in self.modules() if isinstance(module, Attention)):
            # what transformers' attention functions read from the module that calls them
            attention.layer_idx, attention.is_causal = attention.layer, True  # type: ignore[assignment]
            attention.config = config
            attention.num_key_value_groups = attention.heads // attention.kv_heads  # type: ignore[assignment]
        set_check_finite(self, False)  # rows of padding may be NaN; no wait for the device per layer
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @_both_names
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Return the last norm's output, the cache and, if asked for, the routers' logits.

        Arguments are as in every decoder of transformers.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        x_BLD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(x_BLD.shape[1], device=x_BLD.device) + past)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BLD,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{_CACHE: cache},
        )
        context = HuggingFaceContext(self.config, position_ids, mask, cache, kwargs)
        if self._limited:
            context.real_T = select_real_tokens(
                attention_mask, x_BLD, 0 if cache is None else cache.get_seq_length()
            )
        x_BLD, router_logits = self._through_layers(x_BLD, context)
        wanted = self.config.output_router_logits if output_router_logits is None else output_router_logits
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(x_BLD),
            router_logits=router_logits if wanted else None,
            **{_CACHE: cache},
        )

    def _through_layers(
        self, x_BLD: torch.Tensor, context: HuggingFaceContext
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        table = compute_rotary(context.position_ids, *self._rope, x_BLD)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            context.cache = None  # recomputation would write to it twice
        router_logits = []
        if self._noisy and self.training:
            context.noise_seed = torch.randint(2**62, ())  # a tensor: a compiled pass must not be of one seed
        for layer in self.layers:
            x_BLD, logits_TE = layer(x_BLD, table, context, self.hyper_network)
            if logits_TE is not None:
                router_logits.append(logits_TE)
        return x_BLD, tuple(router_logits)


class HMoEForCausalLM(HMoEPreTrainedModel, GenerationMixin):
    """Language model whose experts differ in size (HMoE), for everything that speaks transformers."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HMoEConfig) -> None:
        super().__init__(config)
        self.model = HMoEModel(config)
        moe = self._moe = config.structure.moe
        self._note = None if moe is None else moe.warning
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @_both_names
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Return logits (B, L, V) and, with `labels`, the loss in nats per token.

        `output_router_logits` adds the auxiliary losses to it. These are the mean over MoE layers of tokens
        that `attention_mask` keeps, each times its coefficient, of the experts that they choose without
        noise; `aux_loss` is their sum. Where a trainer accumulates gradients and tells `num_items_in_batch`,
        the loss is this batch's part of the step's, and so is what `aux_loss` adds to it.
        """
        if labels is not None and self.training and self._note and not torch.compiler.is_compiling():
            logger.warning_once(self._note)
        wanted = self.config.output_router_logits if output_router_logits is None else output_router_logits
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds,
            use_cache=use_cache, output_router_logits=wanted,
            **{_CACHE: past_key_values if cache is None else cache}, **kwargs,
        )  # fmt: skip
        x_BLD = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BLV = self.lm_head(x_BLD[:, keep, :])
        loss = None if labels is None else self.loss_function(logits_BLV, labels, self.vocab_size, **kwargs)
        aux_loss = (
            self._auxiliary_loss(outputs.router_logits, attention_mask)
            if wanted and outputs.router_logits
            else None
        )
        if loss is not None and aux_loss is not None:
            share = _share_of_step(labels, kwargs.get("num_items_in_batch"))
            loss = loss + share * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss, aux_loss=aux_loss, logits=logits_BLV, hidden_states=outputs.hidden_states,
            attentions=outputs.attentions, router_logits=outputs.router_logits, **{_CACHE: outputs.get(_CACHE)},
        )  # fmt: skip

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as every model of transformers, without capacities; refuse a model that is not causal."""
        check_causal(self.config)
        with without_capacities(self):
            return super().generate(*args, **kwargs)

    def _auxiliary_loss(
        self, router_logits: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        # A compiler cannot trace how a spec is made; it sees the one that the model was made of.
        moe = self._moe if torch.compiler.is_compiling() else self.config.moe
        assert moe is not None
        if (
            attention_mask is not None
            and attention_mask.dim() == 2
            and attention_mask.numel() == len(router_logits[0])
        ):
            kept_T = attention_mask.flatten().bool()
            router_logits = tuple(logits_TE[kept_T.to(logits_TE.device)] for logits_TE in router_logits)
        device = router_logits[0].device
        routers = [module for module in self.model.modules() if isinstance(module, RouterLayer)]
        routings = [
            route_tokens(logits_TE.to(device), moe.router, router.make_state(device))
            for logits_TE, router in zip(router_logits, routers, strict=True)
        ]
        terms = compute_auxiliary_losses(routings, moe)
        return router_logits[0].new_zeros(()) + sum_weighted_losses(terms, moe)


def _share_of_step(labels: torch.Tensor | None, num_items: torch.Tensor | int | None) -> torch.Tensor | float:
    """Return the share of an optimiser step's targets that are in this batch; first tokens are none."""
    if labels is None or num_items is None:
        return 1.0
    return (labels[..., 1:] != -100).sum() / num_items


__all__ = ["HMoEForCausalLM", "HMoEModel", "HMoEPreTrainedModel"]
