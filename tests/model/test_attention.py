"""Attention whose queries, keys and values come of one product, against three products."""

import pytest
import torch
from torch import nn

from hmoe.model.attention import Attention, Sequences
from hmoe.model.rotary import compute_rotary
from hmoe.specs.rope import RopeScaling

DIM, HEADS, WIDTH, LENGTH = 24, 4, 6, 9


def run_attention(attention: Attention, scaling: RopeScaling | None = None) -> list[torch.Tensor]:
    """Return output and gradients of the input and all weights."""
    generator = torch.Generator().manual_seed(1)
    dtype = attention.o_proj.weight.dtype
    x, dy = (
        torch.randn(2, LENGTH, DIM, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    x.requires_grad_()
    table = compute_rotary(torch.arange(LENGTH)[None], WIDTH, 100.0, scaling, x)
    y, _ = attention(x, table, Sequences())
    weights = list(attention.parameters())
    return [y.detach(), *torch.autograd.grad(y, (x, *weights), dy)]


def make_attention(kv_heads: int, dtype: torch.dtype = torch.float64) -> Attention:
    attention = Attention(DIM, HEADS, kv_heads, WIDTH, None, 1e-5, 0)
    attention.reset_parameters(torch.Generator().manual_seed(0))
    return attention.to(dtype)


def count_products(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many of the three projections a forward pass calls by themselves."""
    calls: list[int] = []
    plain = nn.Linear.forward

    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        calls.append(id(self))
        return plain(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", forward)
        run_attention(attention)
    return len(set(calls) - {id(attention.o_proj)})


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [None, RopeScaling("yarn", 4.0, original_length=4)])
def test_one_product_is_three(
    kv_heads: int, scaling: RopeScaling | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = make_attention(kv_heads)
    assert count_products(attention, monkeypatch) == 0
    at_once = run_attention(attention, scaling)
    # Somebody who watches a projection must see it called.
    attention.k_proj.register_forward_hook(lambda module, inputs, output: None)
    assert count_products(attention, monkeypatch) == 3
    for ours, expected in zip(at_once, run_attention(attention, scaling), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_wrapped_projections_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapted(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = 2 * self.inner(x)
            return result

    attention, before = make_attention(2), run_attention(make_attention(2))[0]
    attention.v_proj = Adapted(attention.v_proj)  # type: ignore[assignment]
    torch.testing.assert_close(run_attention(attention)[0], 2 * before)


def test_one_product_in_float32_errs_at_most_twice_as_much_as_three() -> None:
    exact = run_attention(make_attention(2))
    at_once, attention = run_attention(make_attention(2, torch.float32)), make_attention(2, torch.float32)
    attention.q_proj.register_forward_hook(lambda module, inputs, output: None)
    for ours, plain, reference in zip(at_once, run_attention(attention), exact, strict=True):
        assert (ours - reference).norm() <= 2 * (plain - reference).norm()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_gradients_keep_no_more_memory_than_their_own(kv_heads: int) -> None:
    for gradient in run_attention(make_attention(kv_heads, torch.float32))[2:]:
        assert gradient.untyped_storage().nbytes() == gradient.nbytes
