"""Mixture-of-experts layers of other libraries, where installed, with equal experts of the same total width.

Each is a function (dim, expert width, experts, k, device, dtype) -> (module, its router's weight, x -> y).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

OtherLayer = tuple[nn.Module, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]


def choose_mixtral_maker(implementation: str) -> Callable[..., OtherLayer]:
    """Return a maker of transformers' Mixtral block with one of its implementations of the experts."""

    def make(dim: int, width: int, experts: int, k: int, device: str, dtype: torch.dtype) -> OtherLayer:
        from transformers import MixtralConfig  # noqa: PLC0415
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock  # noqa: PLC0415

        config = MixtralConfig(
            hidden_size=dim, intermediate_size=width, num_local_experts=experts, num_experts_per_tok=k
        )
        config._experts_implementation = implementation
        block = MixtralSparseMoeBlock(config).to(device, dtype)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=dim**-0.5)

        def run(x: torch.Tensor) -> torch.Tensor:
            out = block(x.unsqueeze(0))
            y: torch.Tensor = out[0] if isinstance(out, tuple) else out
            return y.view_as(x)

        return block, block.gate.weight, run

    return make


def make_scattermoe(
    dim: int, width: int, experts: int, k: int, device: str, dtype: torch.dtype
) -> OtherLayer:
    """Make ScatterMoE's gated MLP behind a plain top-k router."""
    from scattermoe.mlp import GLUMLP  # noqa: PLC0415

    router = nn.Linear(dim, experts, bias=False).to(device, dtype)
    mlp = GLUMLP(dim, width, experts, k, activation=nn.SiLU()).to(device, dtype)

    def run(x: torch.Tensor) -> torch.Tensor:
        gates, chosen = torch.softmax(router(x).float(), dim=1).topk(k, dim=1)
        y: torch.Tensor = mlp(x, (gates / gates.sum(1, keepdim=True)).to(x.dtype), chosen)
        return y

    return nn.ModuleList([router, mlp]), router.weight, run


def make_sonicmoe(dim: int, width: int, experts: int, k: int, device: str, dtype: torch.dtype) -> OtherLayer:
    """Make SonicMoE's layer, with its own kernels."""
    from sonicmoe import KernelBackendMoE, MoE  # noqa: PLC0415
    from sonicmoe.enums import ActivationType  # noqa: PLC0415

    sizes = {"num_experts": experts, "num_experts_per_tok": k, "hidden_size": dim, "intermediate_size": width}
    moe = MoE(**sizes, activation_function=ActivationType.SWIGLU, add_bias=False, std=dim**-0.5).to(
        device, dtype
    )
    return moe, moe.router.weight, lambda x: moe(x, kernel_backend_moe=KernelBackendMoE.sonicmoe)[0]


def make_megablocks(
    dim: int, width: int, experts: int, k: int, device: str, dtype: torch.dtype
) -> OtherLayer:
    """Make MegaBlocks' dropless layer, grouped: its block-sparse path raises on current Triton."""
    from megablocks.layers.arguments import Arguments  # noqa: PLC0415
    from megablocks.layers.dmoe import dMoE  # noqa: PLC0415

    arguments = Arguments(
        hidden_size=dim, ffn_hidden_size=width, moe_num_experts=experts, moe_top_k=k, mlp_type="glu",
        mlp_impl="grouped", activation_fn=nn.functional.silu, bias=False, bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16, device=device,
    )  # fmt: skip
    moe: Any = dMoE(arguments).to(device, dtype)

    def run(x: torch.Tensor) -> torch.Tensor:
        out = moe(x.unsqueeze(1))
        y: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return y.view_as(x)

    return moe, moe.router.layer.weight, run


OTHERS: dict[str, tuple[str, Callable[..., OtherLayer]]] = {  # name -> (module it needs, maker)
    "transformers eager": ("transformers", choose_mixtral_maker("eager")),
    "transformers grouped_mm": ("transformers", choose_mixtral_maker("grouped_mm")),
    "ScatterMoE": ("scattermoe", make_scattermoe),
    "SonicMoE": ("sonicmoe", make_sonicmoe),
    "MegaBlocks": ("megablocks", make_megablocks),
}
