"""What the layers of transformers' models tell of themselves, by hand."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hmoe import ConfigError
from hmoe.adapt.moe_blocks import (
    count_block_experts,
    get_model_width,
    iterate_moe_blocks,
    list_expert_stacks,
    read_selection,
)
from tests.adapt.test_attach import mixtral, switch


def test_switch_tells_its_selection_by_logits_whatever_the_mask_has() -> None:
    logits = torch.tensor([[[0.1, 2.0, 0.3], [3.0, 0.0, 1.0]]])  # two tokens, three experts
    mask = torch.tensor([[[0, 0, 0], [1, 0, 0]]])  # expert 1 was full
    selected = read_selection((mask, logits.softmax(-1), logits), 3)
    assert selected.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_others_tell_it_by_indices_also_where_all_experts_are_chosen(k: int) -> None:
    logits = torch.tensor([[0.1, 2.0, 0.3], [3.0, 0.0, 1.0]])
    gates, experts = logits.topk(k, dim=1)
    expected = torch.zeros(2, 3, dtype=torch.bool)
    for token, chosen in enumerate(experts.tolist()):
        expected[token, chosen] = True
    assert torch.equal(read_selection((logits, gates, experts), 3), expected)


def test_stacks_and_sizes() -> None:
    assert len(list_expert_stacks(switch())) == 2  # encoder and decoder
    (stack,) = list_expert_stacks(mixtral())
    assert [(count_block_experts(block), get_model_width(block)) for block in iterate_moe_blocks(stack)] == [
        (5, 16)
    ] * 2
    dense = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4
    )
    with pytest.raises(ConfigError, match="no mixture-of-experts layer"):
        list_expert_stacks(LlamaForCausalLM(dense))
