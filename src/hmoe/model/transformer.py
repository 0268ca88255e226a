"""The decoder: embedding -> blocks -> norm -> head -> loss. It returns one `Routing` per MoE layer."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hmoe.errors import ConfigError
from hmoe.model.attention import Attention, Context, KVCache, Sequences
from hmoe.model.cross_entropy import cross_entropy
from hmoe.model.decisions import Decisions
from hmoe.model.hyper import HyperNetwork
from hmoe.model.layers import RMSNorm, SwiGLU
from hmoe.model.meta import build_on_meta
from hmoe.model.moe import MoE
from hmoe.model.rotary import Rotary, compute_rotary
from hmoe.model.router import RouterLayer
from hmoe.model.routing import Routing
from hmoe.specs.chunk import count_chunk_tokens
from hmoe.specs.model import ModelSpec

SEQUENCES = Sequences()


class Block(nn.Module):
    """A layer of the decoder: x + attention(norm(x)), then x + ffn(norm(x)); the ffn is dense or an MoE."""

    def __init__(self, config: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim,
            config.heads,
            config.num_kv_heads,
            config.head_width,
            config.qk_norm,
            config.norm_eps,
            layer,
        )
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn: MoE | SwiGLU
        # Kept, because `forward` cannot ask by type: adapters wrap modules.
        self.sparse = config.moe is not None and layer in config.moe_layers
        if self.sparse:
            assert config.moe is not None
            self.ffn = MoE.from_spec(config.dim, config.moe, config.moe_layers.index(layer))
        else:
            assert config.ffn is not None  # checked by the config
            self.ffn = SwiGLU(config.dim, config.ffn)

    def forward(
        self,
        x_BLD: torch.Tensor,
        rotary: Rotary,
        context: Context,
        network: HyperNetwork | None = None,
        decisions: Decisions | None = None,
    ) -> tuple[torch.Tensor, Routing | None]:
        """Return the block's outputs (B, L, D), and its routing, None where the ffn is dense.

        Args:
            x_BLD: inputs.
            rotary: cosines and sines of the tokens' positions.
            context: what the tokens see, and how they are routed.
            network: the hypernetwork that the layers share.
            decisions: which experts were chosen in an earlier pass over the same tokens.
        """
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotary, context)[0]
        normed_BLD, routing = self.ffn_norm(x_BLD), None
        if self.sparse:
            # A seed for each layer: with the step's own, all layers would
            # favour the same experts for a token.
            seed = (
                None if context.noise_seed is None else context.noise_seed * 1_000_003 + self.attention.layer
            )
            y_BLD, routing = self.ffn(
                normed_BLD,
                context.top_p_T,
                noise_seed=seed,
                real_T=context.real_T,
                hyper_network=network,
                decisions=decisions,
            )
        else:
            y_BLD = self.ffn(normed_BLD)
        return x_BLD + y_BLD, routing


class Transformer(nn.Module):
    """LLaMA decoder (RMSNorm, rotary positions, grouped-query attention, SwiGLU) with dense or MoE layers.

    Build it under `torch.device("meta")` to look at shapes; `init_weights` makes it a model.

    Attributes:
        activation_checkpointing: recompute each block in the backward pass.
    """

    def __init__(self, config: ModelSpec) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.hyper_network = None
        if config.moe is not None and config.moe.hyper is not None:
            self.hyper_network = HyperNetwork(config.dim, len(config.moe_layers), config.moe.hyper)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab, bias=False)

    @property
    def head_weight(self) -> torch.Tensor:
        """Output head (V, D); the input embedding where they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    @torch.no_grad()
    def init_weights(self, seed: int, part: str | None = None) -> None:
        """Draw random weights; each module's depend on (seed, its name) only, not on order or device.

        `part` is the name of a module; only its weights, and those of what is in it, are drawn then.
        """
        # 2 x layers terms are added to the residual stream: attention and ffn of each block.
        residual_scale = (2 * self.config.layers) ** -0.5  # the residual stream keeps its scale with depth
        for name, module in self.named_modules():
            if part is not None and name != part and not name.startswith(f"{part}."):
                continue
            generator = torch.Generator().manual_seed(_mix(seed, name))
            if isinstance(module, Attention | SwiGLU | MoE | RMSNorm | HyperNetwork):
                module.reset_parameters(generator)
            if isinstance(module, Attention):
                module.o_proj.weight.mul_(residual_scale)
            # Parents come before their parts: a shared expert is drawn again, and scaled, in its own turn.
            if isinstance(module, SwiGLU | MoE):
                module.w_down.mul_(residual_scale)
            if name in ("embed", "head"):
                nn.init.normal_(module.weight, std=self.config.dim**-0.5, generator=generator)

    def list_parts(self) -> list[str]:
        """Return the names of the modules whose weights can be drawn one after another: blocks, and what is outside."""
        outside = [name for name, child in self.named_children() if not isinstance(child, nn.ModuleList)]
        return [*outside, *(f"blocks.{layer}" for layer in range(len(self.blocks)))]

    def hidden(
        self, tokens_BL: torch.Tensor, context: Context = SEQUENCES
    ) -> tuple[torch.Tensor, list[Routing]]:
        """Return the outputs of the last norm (B, L, D), and one Routing per MoE layer.

        For those who pick rows before the head. With sharded weights call the model
        itself, whose hooks gather them.
        """
        config, x_BLD = self.config, self.embed(tokens_BL)
        # Once for all layers: they share the angles.
        table = compute_rotary(
            context.positions(tokens_BL), config.head_width, config.rope_theta, config.rope_scaling, x_BLD
        )
        routings = []
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BLD, routing = _checkpointed(block, x_BLD, table, context, self.hyper_network)
            else:
                x_BLD, routing = block(x_BLD, table, context, self.hyper_network)
            if routing is not None:
                routings.append(routing)
        return self.norm(x_BLD), routings

    def forward(
        self, tokens_BL: torch.Tensor, targets_BL: torch.Tensor | None = None, context: Context = SEQUENCES
    ) -> tuple[torch.Tensor, list[Routing]]:
        """Return logits (B, L, V) or, with targets, the language-model loss, and one Routing per MoE layer.

        The loss is the mean over tokens in nats, a scalar; the logits of all
        tokens never exist at one time then.
        """
        # The loss is computed in here: the hooks of sharded weights (FSDP2)
        # gather the head for this call only.
        x_BLD, routings = self.hidden(tokens_BL, context)
        if targets_BL is None:
            return nn.functional.linear(x_BLD, self.head_weight), routings
        chunk = count_chunk_tokens(self.config.vocab, x_BLD.device.type)
        return cross_entropy(x_BLD.flatten(0, 1), self.head_weight, targets_BL.reshape(-1), chunk), routings

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty key/value cache for `batch` sequences of up to `capacity` tokens.

        Raises:
            ConfigError: for a model that cannot generate.
        """
        check_causal(self.config)
        shape = (batch, self.config.num_kv_heads, self.config.head_width)
        return KVCache(self.config.layers, shape, capacity, self.embed.weight.detach())


def build_transformer(
    config: ModelSpec, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Transformer:
    """Return a model with random weights that depend on the seed only."""
    # Shapes first, because modules draw weights when they are made. Then on the CPU,
    # whatever the device, for equal bits.
    with build_on_meta():
        model = Transformer(config).to(dtype)
    model.to_empty(device="cpu").init_weights(seed)
    return model.to(device)


def _checkpointed(block: nn.Module, *arguments: Any) -> tuple[torch.Tensor, Routing | None]:
    """Compute a block that is computed again in the backward pass, by the routing of the first pass."""
    if block._compiled_call_impl is not None:
        # A compiled block computes the same bits twice, so it chooses the same experts,
        # and its graph knows no decisions.
        run: Any = block
    else:
        decisions = Decisions()

        def run(*block_arguments: Any) -> Any:
            decisions.begin()
            return block(*block_arguments, decisions)

    # No generator's state is kept: a router's noise is a function of its seed, and nothing else is random.
    result: tuple[torch.Tensor, Routing | None] = checkpoint(
        run, *arguments, use_reentrant=False, preserve_rng_state=False
    )
    return result


def check_causal(config: Any) -> None:
    """Raise ConfigError if a token's experts depend on tokens after it: such a model cannot generate."""
    if config.moe is not None and not config.moe.router.causal:
        raise ConfigError(
            f"router.name = {config.moe.router.name}: {config.moe.router.causal_fault}, so this model "
            "cannot generate, nor score an answer that it does not see; nearest choice: top_k"
        )


@contextlib.contextmanager
def without_capacities(model: Any) -> Iterator[None]:
    """Switch the routers' capacities off for a while, to write text.

    Few tokens at a time fill a capacity at once, and by it a text would depend on the others of its batch.
    """
    moe = model.config.moe
    # Asked for every token that is written, so modules are looked at only where the config has a capacity.
    if moe is None or not moe.router.has_capacity:
        yield
        return
    routers = [module for module in model.modules() if isinstance(module, RouterLayer)]
    before = [router.spec for router in routers]
    try:
        for router in routers:
            router.spec = router.spec.without_capacity()
        yield
    finally:
        for router, spec in zip(routers, before, strict=True):
            router.spec = spec


def set_check_finite(model: nn.Module, check: bool) -> None:
    """Switch the check for finite router logits in every MoE layer; the trainer tests loss and gradients."""
    for module in model.modules():
        if isinstance(module, MoE):
            module.check_finite = check


def set_backend(model: nn.Module, backend: str) -> None:
    """Choose what computes the experts of every MoE layer (`hmoe.kernels.NAMES`)."""
    for module in model.modules():
        if isinstance(module, MoE):
            module.backend = backend


def _mix(seed: int, name: str) -> int:
    """Return a generator's seed for a module of this name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
