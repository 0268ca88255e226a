"""A model becomes a Hugging Face folder: as it is, or a top-k model as an ordinary Mixtral.

The Mixtral computes exactly the same function, for software that knows no HMoE.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from hmoe.errors import ConfigError
from hmoe.hub import card, code, tokenizer_files
from hmoe.hub.configuration import HMoEConfig
from hmoe.hub.modeling import HMoEForCausalLM
from hmoe.model.meta import build_on_meta
from hmoe.model.moe import MoE
from hmoe.model.transformer import Block, Transformer
from hmoe.runs.open_model import OpenedModel
from hmoe.runs.weight_names import name_hf_weight, name_llama_weight
from hmoe.specs.hugging_face import write_hf_keys
from hmoe.specs.model import ModelSpec
from hmoe.storage import check_unused_folder

FORMATS = ("hmoe", "mixtral")
_OF_MIXTRAL = (  # keys of our config.json that say the same in Mixtral's
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        form: hmoe, or mixtral: experts padded with zeros to the widest, the same function.
        dtype: of the weights; None: as they are.
        shard_size: largest file, such as "5GB".
        with_code: with files that load where hmoe is not installed (`trust_remote_code=True`).
    """

    form: str = "hmoe"
    dtype: torch.dtype | None = None
    shard_size: str = "5GB"
    with_code: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[1-9][0-9]{0,8}(KB|MB|GB|TB)", self.shard_size):
            raise ConfigError(
                f"shard_size = {self.shard_size}: must be a number with KB, MB, GB or TB, such as 5GB",
                argument="shard_size",
            )


class ExportReport(NamedTuple):
    """What was written, and the line of Python that loads it.

    Attributes:
        parameters: of the written model, padding included.
        weight_bytes: of these.
        widths: hidden units of each expert, none in a dense model.
        padded_width: that all experts have in a Mixtral; None: each has its own.
        padding: by what factor the memory of the experts grew; None: it did not.
        load: Python.
    """

    parameters: int
    weight_bytes: int
    widths: tuple[int, ...]
    padded_width: int | None
    padding: float | None
    load: str


def export_opened_model(opened: OpenedModel, source: Path, folder: Path, how: ExportOptions) -> ExportReport:
    """Write the folder in one rename; returns what it costs and how it is loaded.

    Raises:
        ConfigError: if the folder exists, or the form cannot say what the model does, naming why.
    """
    check_unused_folder(folder)
    if how.form not in FORMATS:
        raise ConfigError(f"form = {how.form}: must be one of {', '.join(FORMATS)}", argument="form")
    if how.with_code and how.form != "hmoe":
        raise ConfigError(
            "with_code has no effect with form = mixtral, which every transformers knows; remove it",
            argument=("with_code", "form"),
        )
    model = convert_to_hugging_face(opened) if how.form == "hmoe" else convert_to_mixtral(opened)
    if how.dtype is not None:
        model = model.to(how.dtype)
    # not in config.json, where a padding token has no gradient: this one separates documents
    model.generation_config.pad_token_id = opened.tokenizer.separator
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary, max_shard_size=how.shard_size)
        tokenizer_files.write_tokenizer_files(opened, temporary)
        if how.with_code:
            code.write_code_files(temporary)
        (temporary / "README.md").write_text(
            card.format_model_card(opened, source, how.form, how.with_code), encoding="utf-8"
        )
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _report(opened, model, folder, how)


def convert_to_hugging_face(opened: OpenedModel) -> HMoEForCausalLM:
    """Return the same weights (shared, not copied) in the Hugging Face class."""
    model = opened.model
    config = HMoEConfig(**write_hf_keys(model.config, opened.context_length), **_special_tokens(opened))
    state = {name_hf_weight(name): parameter.detach() for name, parameter in model.named_parameters()}
    exported: HMoEForCausalLM = _assigned(HMoEForCausalLM, config, state)
    return exported


def convert_to_mixtral(opened: OpenedModel) -> MixtralForCausalLM:
    """Return a MixtralForCausalLM that computes the same function: hidden units of zeros add nothing.

    Raises:
        ConfigError: for what Mixtral cannot say.
    """
    model = opened.model
    why = _not_mixtral(model.config) or _bias_in_use(model)
    if why:
        raise ConfigError(f"form = mixtral: {why}; nearest choice: form = hmoe", argument="form")
    assert model.config.moe is not None
    widths = model.config.moe.expert_widths
    _, _, most = model.config.moe.router.count_experts_per_token(len(widths))
    config = MixtralConfig(
        **_mixtral_shape(opened), **_special_tokens(opened),
        intermediate_size=choose_padded_width(widths), num_local_experts=len(widths), num_experts_per_tok=most,
        router_aux_loss_coef=model.config.moe.load_balance, sliding_window=None,
    )  # fmt: skip
    return _assigned(MixtralForCausalLM, config, dict(_mixtral_state(model, choose_padded_width(widths))))


def choose_padded_width(widths: tuple[int, ...]) -> int:
    """Return the largest width, rounded up to a multiple of 8: grouped products want rows of 16 bytes."""
    return -(-max(widths) // 8) * 8


def measure_padding(widths: tuple[int, ...]) -> float:
    """Return by what factor the experts' memory grows when all have the padded width."""
    return len(widths) * choose_padded_width(widths) / sum(widths)


def _not_mixtral(config: ModelSpec) -> str | None:
    moe = config.moe
    if moe is None:
        return "the model is dense, Mixtral has experts in every layer"
    fault = moe.router.describe_mixtral_fault(len(moe.expert_widths))
    if fault is not None:
        return fault
    for name in ("shared", "zero", "hyper", "skip"):
        if getattr(moe, name):
            return f"moe.{name} is not part of Mixtral"
    if moe.dense_layers:
        return f"layers {list(moe.dense_layers)} are dense, Mixtral has experts in every layer"
    if config.qk_norm:
        return "queries and keys are normalised, which Mixtral does not do"
    return None


def _bias_in_use(model: Transformer) -> str | None:
    """Return why routers' biases cannot be left out, or None where all are zero, as before training."""
    for layer in model.config.moe_layers:
        block = model.blocks[layer]
        assert isinstance(block, Block)
        assert isinstance(block.ffn, MoE)
        bias = block.ffn.router.bias_E
        if bias is not None and bool(bias.any()):
            return f"router.bias_rate: layer {layer} chooses by a bias, which Mixtral's router does not have"
    return None


def _mixtral_state(model: Transformer, width: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights by their names in memory; transformers writes them in the layout that all can read."""
    for name, parameter in model.named_parameters():
        llama_name = name_llama_weight(name)
        if llama_name is not None:
            yield llama_name, parameter.detach()
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        layer, ffn = f"model.layers.{index}.", block.ffn
        assert isinstance(ffn, MoE)
        yield f"{layer}mlp.gate.weight", ffn.router.weight.detach()
        dim, count = ffn.dim, len(ffn.widths)
        gate_up = ffn.w_gate.new_zeros(count, 2 * width, dim).detach()
        down = ffn.w_gate.new_zeros(count, dim, width).detach()
        for i, size in enumerate(ffn.widths):
            w_gate, w_up, w_down = ffn.expert(i)
            gate_up[i, :size], gate_up[i, width : width + size], down[i, :, :size] = w_gate, w_up, w_down
        yield f"{layer}mlp.experts.gate_up_proj", gate_up
        yield f"{layer}mlp.experts.down_proj", down


def _assigned(kind: type[PreTrainedModel], config: Any, state: dict[str, torch.Tensor]) -> Any:
    """Return a model of that class whose parameters are these tensors."""
    config.dtype = next(iter(state.values())).dtype
    with build_on_meta():
        model = kind(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval()


def _mixtral_shape(opened: OpenedModel) -> dict[str, Any]:
    keys = write_hf_keys(opened.model.config, opened.context_length)
    shape = {key: keys[key] for key in _OF_MIXTRAL}
    scaling = opened.model.config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":  # counts from the maximum length there
        shape["max_position_embeddings"] = scaling.original_length
        del shape["rope_parameters"]["original_max_position_embeddings"]
    return shape


def _special_tokens(opened: OpenedModel) -> dict[str, Any]:
    """Return the token that begins a text, in a model trained here the documents' separator, and its ends."""
    ends = list(opened.tokenizer.ends)
    begin = [*opened.begin, opened.tokenizer.separator]
    return {"bos_token_id": begin[0], "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _report(opened: OpenedModel, model: PreTrainedModel, folder: Path, how: ExportOptions) -> ExportReport:
    moe = opened.model.config.moe
    widths = () if moe is None else moe.expert_widths
    is_padded = how.form == "mixtral"
    needs_hmoe = how.form == "hmoe" and not how.with_code
    trust = ", trust_remote_code=True" if how.with_code else ""
    return ExportReport(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        widths=widths,
        padded_width=choose_padded_width(widths) if is_padded else None,
        padding=measure_padding(widths) if is_padded else None,
        load=f"{'import hmoe.hub; ' * needs_hmoe}from transformers import AutoModelForCausalLM; "
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}{trust})",
    )
