"""HyperExperts attached to models of transformers."""

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from hmoe import ConfigError, Hyper
from hmoe.hub import attach_hyper, attach_shared
from tests import oracles

SMALL = Hyper(dim=5, embedding=6, hidden=7, layer_embedding=3)
ZERO = Hyper(dim=5, embedding=6, hidden=7, layer_embedding=3, init="zero")


def switch(**changes: Any) -> Any:
    base = {
        "vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 4, "num_sparse_encoder_layers": 2,
        "num_decoder_layers": 4, "num_sparse_decoder_layers": 2, "num_heads": 4, "num_experts": 4, "expert_capacity": 3,
        "decoder_start_token_id": 0, "dropout_rate": 0.0,
    }  # fmt: skip
    torch.manual_seed(3)
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**base | changes)).eval()


def mixtral() -> Any:
    torch.manual_seed(3)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=60, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=5,
        )
    ).eval()  # fmt: skip


def qwen3() -> Any:
    torch.manual_seed(3)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=60, hidden_size=16, intermediate_size=12, moe_intermediate_size=8, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=4, num_experts=6, num_experts_per_tok=2,
            mlp_only_layers=[1],
        )
    ).eval()  # fmt: skip


def qwen2() -> Any:
    torch.manual_seed(3)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=60, hidden_size=16, intermediate_size=12, moe_intermediate_size=8,
            shared_expert_intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_experts=5, num_experts_per_tok=2,
        )
    ).eval()  # fmt: skip


def olmoe() -> Any:
    torch.manual_seed(3)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=60, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
            num_experts=5, num_experts_per_tok=2,
        )
    ).eval()  # fmt: skip


MAKES = {"switch": switch, "mixtral": mixtral, "qwen3": qwen3, "qwen2": qwen2, "olmoe": olmoe}


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    labels = {"labels": ids[:, :7].contiguous()} if model.config.is_encoder_decoder else {}
    out: torch.Tensor = model(input_ids=ids, **labels).logits
    return out


def without_hooks(block: Any, x: torch.Tensor) -> torch.Tensor:
    hooks, block._forward_hooks = block._forward_hooks, {}
    plain: torch.Tensor = block(x)
    block._forward_hooks = hooks
    return plain


@pytest.mark.parametrize("name", list(MAKES))
def test_zero_changes_nothing_and_paper_nearly_nothing(name: str) -> None:
    plain = logits(MAKES[name]())
    assert torch.equal(logits(attach_hyper(MAKES[name](), ZERO)), plain)
    near = attach_hyper(MAKES[name]())
    assert not torch.equal(logits(near), plain)
    for block in (module for module in near.modules() if hasattr(module, "hyper")):
        x = torch.randn(2, 9, 16)
        assert 0 < (block(x) - without_hooks(block, x)).abs().max() < 2e-3


@pytest.mark.parametrize("name", list(MAKES))
def test_each_layer_adds_the_experts_of_the_oracle(name: str) -> None:
    """What is added is of the layer's input and the experts left out; a full expert changes no selection."""
    model = attach_hyper(MAKES[name](), SMALL).double()
    if name != "switch":
        model.set_experts_implementation("eager")  # grouped products know no float64
    for key, parameter in model.named_parameters():
        if "hyper" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    seen: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    blocks = [module for module in model.modules() if hasattr(module, "hyper")]
    for block in blocks:
        block.register_forward_hook(lambda block, given, out: seen.append((block, given[0], out)))
    logits(model)
    networks = [m for key, m in model.named_modules() if key.endswith("hyper_network")]
    assert len(networks) == (2 if name == "switch" else 1)
    assert len(seen) == len(blocks) == (4 if name == "switch" else 2)
    for index, (block, x, out) in enumerate(seen):
        network = networks[index // 2 if name == "switch" else 0]
        weights = {key.removeprefix("heads."): value for key, value in network.state_dict().items()}
        weights |= block.hyper.state_dict()
        weights["layer_embedding"] = weights.pop("layer_embedding.weight")[block.hyper.layer]
        plain = without_hooks(block, x)
        router = block.router.classifier.weight if name == "switch" else block.gate.weight
        flat, k = x.reshape(-1, 16), 1 if name == "switch" else 2
        for t, row in enumerate(flat):
            chosen = oracles.chosen(router.double() @ row, k)
            left = [i for i in range(len(router)) if i not in chosen]
            expected = oracles.hyper_expert(row, left, weights)
            torch.testing.assert_close((out - plain).reshape(-1, 16)[t], expected, rtol=1e-6, atol=1e-6)


def test_the_published_number_of_added_parameters() -> None:
    """Switch-base-8: 26.0M on 620M."""
    sizes = {"d_model": 768, "num_layers": 12, "num_decoder_layers": 12, "num_sparse_encoder_layers": 6,
             "num_sparse_decoder_layers": 6, "num_experts": 8, "d_ff": 8, "d_kv": 8, "num_heads": 2}  # fmt: skip
    counts = []
    for attach in (lambda model: model, attach_hyper, attach_shared):
        counts.append(sum(p.numel() for p in attach(switch(**sizes)).parameters()))
    assert counts[1] - counts[0] == 26_021_368
    assert counts[2] - counts[0] == pytest.approx(26_021_368, rel=1e-3)


@pytest.mark.parametrize("name", list(MAKES))
def test_everything_learns_also_recomputed(name: str) -> None:
    grads = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = attach_hyper(MAKES[name](), SMALL).train()
        if recompute:
            for layer in (m for m in model.modules() if hasattr(m, "gradient_checkpointing")):
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        logits(model).square().sum().backward()
        grads.append({key: p.grad.clone() for key, p in model.named_parameters() if "hyper" in key})
    assert all(grad.abs().sum() > 0 for grad in grads[0].values())
    for key, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][key], rtol=1e-4, atol=1e-7, msg=key)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = attach_hyper(mixtral(), SMALL)
    for key, parameter in model.named_parameters():
        if "hyper" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    again = attach_hyper(MixtralForCausalLM.from_pretrained(tmp_path).eval(), folder=tmp_path)
    assert torch.equal(logits(again), logits(model))  # both lie in aligned memory


def test_generation_goes_through_the_hyper_experts() -> None:
    model = attach_hyper(mixtral(), SMALL)
    for key, parameter in model.named_parameters():
        if "hyper" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.randint(0, 60, (1, 5))
    new = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with torch.no_grad():
        for end in range(5, 9):
            assert new[0, end] == model(new[:, :end]).logits[0, -1].argmax()


def test_a_shared_expert_starts_at_nothing() -> None:
    model = mixtral()
    plain = logits(model)
    assert torch.equal(logits(attach_shared(model, 7)), plain)
    logits(model).sum().backward()
    assert all(p.grad is not None for key, p in model.named_parameters() if "shared_expert" in key)


def test_a_shared_expert_is_saved_and_loaded(tmp_path: Path) -> None:
    model = attach_shared(mixtral(), 5)
    for key, parameter in model.named_parameters():
        if "shared_expert" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    assert not torch.equal(logits(model), logits(mixtral()))
    model.save_pretrained(tmp_path)
    again = attach_shared(MixtralForCausalLM.from_pretrained(tmp_path).eval(), folder=tmp_path)
    assert torch.equal(logits(again), logits(model))  # both lie in aligned memory


def test_what_is_attached_to_lies_in_aligned_memory(tmp_path: Path) -> None:
    attach_shared(mixtral(), 5).save_pretrained(tmp_path)
    loaded = MixtralForCausalLM.from_pretrained(tmp_path)
    assert any(parameter.data_ptr() % 64 for parameter in loaded.parameters())  # as transformers leaves them
    attach_shared(loaded, folder=tmp_path)
    assert [name for name, parameter in loaded.named_parameters() if parameter.data_ptr() % 64] == []


def test_what_cannot_be_attached(tmp_path: Path) -> None:
    dense = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4
        )
    )
    with pytest.raises(ConfigError, match="no mixture-of-experts layer"):
        attach_hyper(dense)
    model = attach_hyper(mixtral(), SMALL)
    with pytest.raises(ConfigError, match="this model has HyperExperts already"):
        attach_hyper(model)
    model.save_pretrained(tmp_path)
    for attach in (attach_hyper, attach_shared):  # the trained ones would be lost without a word
        again = MixtralForCausalLM.from_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="saved with HyperExperts, which it lacks now"):
            attach(again)
        assert not any(hasattr(module, "hyper") for module in again.modules())
    shared = attach_shared(mixtral(), 5)
    shared.save_pretrained(tmp_path / "shared")
    with pytest.raises(ConfigError, match="saved with shared experts, which it lacks now"):
        attach_shared(MixtralForCausalLM.from_pretrained(tmp_path / "shared"))
    with pytest.raises(Exception, match="has shape"):
        attach_hyper(mixtral(), Hyper(dim=6, embedding=6, hidden=7, layer_embedding=3), tmp_path)
    mixtral().save_pretrained(tmp_path / "plain")
    with pytest.raises(Exception, match="is missing"):
        attach_hyper(mixtral(), SMALL, tmp_path / "plain")


def test_a_copy_uses_its_own_weights_and_pickles() -> None:
    model = attach_hyper(mixtral(), SMALL)
    for key, parameter in model.named_parameters():
        if "hyper" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    again = copy.deepcopy(model)
    assert torch.equal(logits(again), logits(model))
    with torch.no_grad():
        for key, parameter in again.named_parameters():
            if "hyper" in key:
                parameter.zero_()
    assert torch.equal(logits(again), logits(mixtral()))
    assert not torch.equal(logits(again), logits(model))
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))


def test_a_failed_attachment_changes_nothing(tmp_path: Path) -> None:
    model = mixtral()
    with pytest.raises(Exception, match=r"no model\.safetensors"):
        attach_hyper(model, SMALL, tmp_path)
    assert torch.equal(logits(attach_hyper(model, ZERO)), logits(mixtral()))
    with pytest.raises(ConfigError, match="width = 0"):
        attach_shared(mixtral(), 0)
