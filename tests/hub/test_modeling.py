"""What everything that speaks transformers expects of a model; transformers' own test mixins look at the same."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hmoe.hub import HMoEConfig, HMoEForCausalLM, HMoEModel
from hmoe.model.losses import compute_auxiliary_losses, sum_weighted_losses
from hmoe.model.transformer import Transformer
from tests.hub.helpers import KINDS, config, model, tokens


def ours(made: HMoEForCausalLM) -> Transformer:
    """The trainer's model with the same weights."""
    from hmoe.runs.weight_names import name_hf_weight

    transformer = Transformer(made.config.structure)
    state = made.state_dict()
    transformer.load_state_dict({name: state[name_hf_weight(name)] for name in transformer.state_dict()})
    return transformer


@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_and_loss_are_the_trainers(kind: str) -> None:
    made, ids = model(**KINDS[kind]), tokens()
    logits, routings = ours(made)(ids)
    moe = made.config.structure.moe
    out = made(ids, labels=ids, output_router_logits=True)
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=5e-6)  # sums in another order
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(
        out.loss, loss + sum_weighted_losses(compute_auxiliary_losses(routings, moe), moe)
    )
    torch.testing.assert_close(made(ids, labels=ids).loss, loss)
    assert len(out.router_logits) == len(made.config.moe_layers)
    for found, routing in zip(out.router_logits, routings, strict=True):
        torch.testing.assert_close(found, routing.logits_TE)


def test_auxiliary_losses_count_the_tokens_that_the_mask_keeps() -> None:
    made, ids = model(router_type="top_p", router_entropy_coef=0.03, load_balance_coef=0.01), tokens(1, 6)
    alone = made(ids, output_router_logits=True).aux_loss
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = (padded != 0).long()
    position = (mask.cumsum(1) - 1).clamp(min=0)
    found = made(padded, attention_mask=mask, position_ids=position, output_router_logits=True).aux_loss
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "rectified"]
)  # a capacity is shared by a batch: below
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_padded_batch_gives_the_logits_of_each_sequence_alone(kind: str, implementation: str) -> None:
    made = model(**KINDS[kind])
    made.set_attn_implementation(implementation)
    parts = [tokens(1, length)[0] for length in (3, 9, 6)]
    for side in ("left", "right"):
        padded, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
        for row, part in enumerate(parts):
            place = slice(9 - len(part), 9) if side == "left" else slice(0, len(part))
            padded[row, place], mask[row, place] = part, 1
        position = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            out = made(padded, attention_mask=mask, position_ids=position).logits
            for row, part in enumerate(parts):
                alone = made(part[None]).logits[0]
                torch.testing.assert_close(out[row][mask[row].bool()], alone, rtol=1e-5, atol=1e-5)


def test_attention_implementations_agree_and_eager_gives_weights() -> None:
    made, ids = model(), tokens()
    sdpa = made(ids)
    made.set_attn_implementation("eager")
    eager = made(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(eager.logits, sdpa.logits, rtol=1e-5, atol=1e-5)
    assert [w.shape for w in eager.attentions] == [(2, 4, 9, 9)] * 2
    torch.testing.assert_close(eager.attentions[0].sum(-1), torch.ones(2, 4, 9))
    assert [h.shape for h in eager.hidden_states] == [(2, 9, 32)] * 3
    torch.testing.assert_close(eager.hidden_states[0], made.model.embed_tokens(ids))
    torch.testing.assert_close(made.lm_head(eager.hidden_states[-1]), eager.logits)
    with pytest.raises(ValueError, match="nonsense"):
        made.set_attn_implementation("nonsense")


@pytest.mark.parametrize("kind", list(KINDS))
def test_weights_round_trip_bit_for_bit(kind: str, tmp_path: Path) -> None:
    made = model(**KINDS[kind])
    made.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is HMoEForCausalLM
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    told = {"architectures": None, "_name_or_path": None}
    assert again.config.to_dict() | told == made.config.to_dict() | told
    assert torch.equal(again(tokens := torch.arange(3, 12)[None]).logits, made(tokens).logits)
    low = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, value in low.named_parameters():
        assert value.dtype == (torch.float32 if name.endswith("bias_E") else torch.bfloat16), name
        assert torch.equal(value, made.get_parameter(name).to(value.dtype)), name
    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is HMoEModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is HMoEConfig


def test_embeddings_resize_and_stay_tied() -> None:
    for tied in (False, True):
        made = model(tie_word_embeddings=tied)
        before = made.get_input_embeddings().weight[:99].clone()
        made.resize_token_embeddings(120)
        assert made.config.vocab_size == 120
        assert made(torch.tensor([[119]])).logits.shape == (1, 1, 120)
        assert torch.equal(made.get_input_embeddings().weight[:99], before)
        assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied


def test_embeddings_instead_of_ids_and_logits_to_keep() -> None:
    made, ids = model(), tokens()
    logits = made(ids).logits
    torch.testing.assert_close(made(inputs_embeds=made.model.embed_tokens(ids)).logits, logits)
    torch.testing.assert_close(made(ids, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(made(ids, logits_to_keep=torch.tensor([0, 4])).logits, logits[:, [0, 4]])
    with pytest.raises(ValueError, match="exactly one"):
        made(ids, inputs_embeds=made.model.embed_tokens(ids))
    with pytest.raises(ValueError, match="exactly one"):
        made()


def test_tuples_are_returned_when_asked_for() -> None:
    made, ids = model(), tokens()
    out = made(ids, use_cache=False, return_dict=False)
    assert isinstance(out, tuple)
    torch.testing.assert_close(out[0], made(ids).logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    made, ids = model(), tokens()

    def gradients() -> dict[str, torch.Tensor]:
        made.zero_grad()
        made(ids, labels=ids, output_router_logits=True, use_cache=False).loss.backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in made.named_parameters()
            if parameter.grad is not None
        }

    made.train()
    plain = gradients()
    if hasattr(made, "activation_checkpointing_enable"):  # its name from transformers 5.24 on
        made.activation_checkpointing_enable({"use_reentrant": reentrant})
    else:
        made.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients()
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient)
    assert found["model.layers.1.ffn.router.weight"].abs().sum() > 0


def test_dropout_of_attention_is_for_training_only() -> None:
    made, ids = model(attention_dropout=0.5), tokens()
    assert torch.equal(made(ids).logits, made(ids).logits)
    made.train()
    assert not torch.equal(made(ids).logits, made(ids).logits)


def test_initialisation_has_the_configured_range() -> None:
    made = HMoEForCausalLM(config(initializer_range=1e-10))
    for name, parameter in made.named_parameters():
        expected = 1.0 if "norm" in name else 0.0
        assert parameter.mean().item() == pytest.approx(expected, abs=1e-8), name
    torch.manual_seed(0)
    wide = HMoEForCausalLM(config(hidden_size=256, initializer_range=0.5))
    assert wide.model.layers[0].ffn.w_gate.std().item() == pytest.approx(0.5, rel=0.05)


def test_a_compiled_forward_pass_is_one_graph() -> None:
    made, ids = model(), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(ids, use_cache=False).logits, made(ids).logits, rtol=1e-5, atol=1e-5
        )
    torch._dynamo.reset()


def test_a_compiled_training_pass_is_one_graph_with_its_auxiliary_losses() -> None:
    made, ids = model(), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    compiled(ids, labels=ids, output_router_logits=True, use_cache=False).loss.backward()
    found = [parameter.grad.clone() for parameter in made.parameters()]
    made.zero_grad()
    made(ids, labels=ids, output_router_logits=True, use_cache=False).loss.backward()
    for (name, parameter), grad in zip(made.named_parameters(), found, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"router_type": "top"}, "must be one of top_k, top_p, expert_choice"),
        ({"num_experts_per_tok": 4}, "at most the number of experts, 3"),
        ({"router_top_p": 0.0, "router_type": "top_p"}, r"router_top_p = 0\.0"),
        ({"head_dim": 5}, "head width = 5: must be even"),
        ({"num_key_value_heads": 3}, "must divide num_attention_heads"),
        ({"qk_norm": "all"}, "must be one of null, head, width"),
        ({"dense_layers": [2]}, "from 0 to 1"),
        ({"dense_layers": [0]}, "dense_intermediate_size: missing"),
        ({"dense_intermediate_size": 7}, "no effect"),
        ({"expert_widths": [0, 4]}, "integers of at least 1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0.1}}, "factor = 0.1"),
        ({"shared_expert_width": -1}, "shared_expert_width = -1"),
        ({"hyper_experts": {"foo": 1}}, "hyper_experts = .*foo"),
        ({"hyper_experts": {"dim": 3}, "expert_skip": [0.5, 0.5]}, "hyper_experts: router.skip"),
        ({"expert_skip": [0.5]}, "expert_skip: 1 numbers"),
        ({"router_options": {"foo": 1}}, "router_options = .*foo"),
        ({"router_type": "expert_choice", "zero_experts": {"null": 1}}, "no place with expert_choice"),
        (
            {"expert_widths": [], "dense_intermediate_size": 9, "hyper_experts": {"dim": 3}},
            "no effect without experts",
        ),
        ({"penalty_norm": "median"}, "mean, max, raw"),
        ({"entropy_scale": "two"}, "experts, one"),
    ],
)
def test_a_config_that_cannot_work_says_why(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        HMoEForCausalLM(config(**changes))


def test_old_and_new_name_of_the_cache() -> None:
    made, ids = model(), tokens()
    with torch.no_grad():
        first = made(ids[:, :5], use_cache=True)
    cache = getattr(first, "cache", None) or first.past_key_values
    with pytest.warns(FutureWarning) if hasattr(first, "cache") else _nothing():
        rest = made(ids[:, 5:], past_key_values=copy.deepcopy(cache))
    torch.testing.assert_close(rest.logits, made(ids).logits[:, 5:], rtol=1e-5, atol=1e-5)


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()
