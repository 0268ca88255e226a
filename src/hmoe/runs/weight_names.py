"""One map between our parameters' names and those of Hugging Face's classes, for reading and for writing."""

OUTSIDE_BLOCKS = {  # ours -> Hugging Face's
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_IN_BLOCK = {  # ours within a block -> LLaMA's; all families but our own share these
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{f"attention.{part}_proj.weight": f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{f"attention.{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"},
}
PROJECTIONS = {"w_gate": ("gate_proj", "w1"), "w_up": ("up_proj", "w3"), "w_down": ("down_proj", "w2")}


def name_hf_weight(name: str) -> str:
    """Return what our parameter is called in HMoEForCausalLM."""
    return OUTSIDE_BLOCKS.get(name) or "model." + name.replace("blocks.", "layers.", 1)


def name_llama_weight(name: str) -> str | None:
    """Return what our parameter is called in the LLaMA family; None for those of feed-forward layers."""
    if name in OUTSIDE_BLOCKS:
        return OUTSIDE_BLOCKS[name]
    _, index, inner = name.split(".", 2)
    return f"model.layers.{index}.{_IN_BLOCK[inner]}" if inner in _IN_BLOCK else None
