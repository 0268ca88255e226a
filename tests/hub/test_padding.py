"""Padding in a batch of the Hugging Face classes: where experts have a limit it takes none of their slots."""

from typing import Any

import pytest
import torch
from transformers import StaticCache

from hmoe import ConfigError
from tests.hub.helpers import model, tokens

LIMITED: dict[str, dict[str, Any]] = {
    "capacity": {"router_options": {"capacity_factor": 0.6}},
    "by width and score": {
        "router_options": {"capacity_factor": 0.7, "capacity_by": "width", "priority": "score"}
    },
    "rectified": {"router_options": {"capacity_factor": 0.5, "rectify": "fr+ir", "when": "fewer"}},
    "local": {"router_options": {"capacity_factor": 0.4, "rectify": "ir", "when": "any"}},
    "expert choice": {"router_type": "expert_choice", "router_options": {"capacity_factor": 1.4}},
}


def padded(ids: torch.Tensor, side: str, length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], slice]:
    """(ids, mask and positions, where the text is)."""
    more = torch.full((1, length), 5)
    whole = torch.cat([more, ids] if side == "left" else [ids, more], 1)
    mask = torch.ones_like(whole)
    mask[:, : length if side == "left" else None][:, -length:] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    text = slice(length, None) if side == "left" else slice(0, ids.shape[1])
    return whole, {"attention_mask": mask, "position_ids": positions}, text


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", list(LIMITED))
def test_a_padded_sequence_is_the_sequence_alone(kind: str, side: str) -> None:
    built, ids = model(**LIMITED[kind]), tokens(1, 8)
    alone = built(ids).logits
    alone.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}
    built.zero_grad()
    whole, masks, text = padded(ids, side, 11)
    logits = built(whole, **masks).logits[:, text]
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    for name, parameter in built.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-3, msg=name)
    without_mask = built(whole, position_ids=masks["position_ids"]).logits[:, text]
    assert not torch.allclose(without_mask, alone, rtol=1e-3, atol=1e-3)


def test_the_mask_of_a_cache_of_fixed_size_covers_tokens_to_come() -> None:
    built, ids = model(**LIMITED["capacity"]).eval(), tokens(1, 8)
    mask = torch.zeros(1, 16, dtype=torch.int64)
    mask[:, :8] = 1
    with torch.no_grad():
        cached = built(
            ids, attention_mask=mask, cache=StaticCache(config=built.config, max_cache_len=16), use_cache=True
        )
        torch.testing.assert_close(cached.logits, built(ids).logits, rtol=1e-5, atol=1e-5)
        with pytest.raises(ConfigError, match="attention_mask: covers 7 tokens, must cover 8"):
            built(ids, attention_mask=mask[:, :7])


def test_a_mask_that_does_not_fit_the_tokens_is_told() -> None:
    import hmoe

    moe = hmoe.MoE(8, [4, 4], hmoe.TopK(1, capacity_factor=1.0, straight_through=True))
    for real_T in (torch.ones(3), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(hmoe.ConfigError, match=r"real_T: .* must be torch\.bool of shape \(3,\)"):
            moe(torch.zeros(3, 8), real_T=real_T)
    routing = moe(torch.randn(3, 8), real_T=torch.tensor([True, False, True]))[1]
    assert 1 not in routing.token_N
    assert int(routing.load_E.sum()) == 2
    assert routing.slots is not None
    assert (
        int(routing.slots.padded) + int(routing.num_tokens_E.sum()) == 2
    )  # a slot for each half of two tokens


def test_a_router_that_the_text_gives_no_gradient_is_announced_when_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hmoe.hub import modeling

    told: list[str] = []
    monkeypatch.setattr(modeling.logger, "warning_once", told.append)
    for built, count in ((model(num_experts_per_tok=1), 1), (model(), 0)):
        ids, before = tokens(), len(told)
        built(ids, labels=ids)  # evaluation
        assert len(told) == before
        built.train()(ids, labels=ids)
        assert len(told) == before + count
    assert "straight_through = true or router.renormalize = false" in told[0]
