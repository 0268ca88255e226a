"""Experts that the next layer will need, guessed a layer early."""

import torch

import hmoe
from hmoe.model.transformer import build_transformer
from hmoe.parallel.next_experts import NextExperts
from tests.parallel.offload_helpers import make_spec


def make_guesses(same: bool, present: tuple[object, ...] = ()) -> NextExperts:
    """Two layers that read the same, as a residual stream nearly is, or the opposite."""
    model = build_transformer(make_spec(router=hmoe.TopK(k=2)), seed=1)
    first, second = (block.ffn.router for block in model.blocks)
    guesses = NextExperts(model, present)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        x_TD = torch.randn(1, 24, generator=generator)
        for layer, router in enumerate((first, second)):
            x_TD = x_TD if same or layer == 0 else -x_TD
            busy = router(x_TD).num_tokens_E.nonzero()[:, 0].tolist()
            guessed = guesses.guess(layer, x_TD, busy)
            assert layer == 0 or guessed == []  # nobody knows what the next token will be
    return guesses


def test_who_reads_alike_is_guessed() -> None:
    guesses = make_guesses(same=True)
    assert guesses.num_guessed == guesses.num_right == 120
    assert guesses.pays


def test_guesses_that_are_mostly_wrong_are_given_up_and_still_counted() -> None:
    guesses = make_guesses(same=False)
    assert 64 <= guesses.num_guessed < 120  # then one in sixteen
    assert guesses.num_right < guesses.num_guessed / 2
    assert not guesses.pays
    assert guesses.guess(0, torch.randn(1, 24), [1, 2]) == []


def test_what_is_in_memory_and_where_most_are_needed_counts_for_nothing() -> None:
    assert make_guesses(True, tuple((1, expert) for expert in range(6))).num_guessed == 0
    model = build_transformer(make_spec(router=hmoe.TopK(k=2)), seed=1)
    guesses = NextExperts(model, ())
    for _ in range(3):
        for layer in range(2):
            guesses.guess(layer, torch.randn(5, 24, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 3])
    assert guesses.num_guessed == 0
