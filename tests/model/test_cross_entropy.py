import pytest
import torch

from hmoe.model.cross_entropy import cross_entropy
from tests import oracles


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_loss_and_gradients_are_the_oracle(chunk: int) -> None:
    x, w = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (13, 11))
    target = torch.randint(0, 11, (13,))
    loss = cross_entropy(x, w, target, chunk)
    (3 * loss).backward()
    x2, w2 = (t.detach().clone().requires_grad_() for t in (x, w))
    expected = oracles.cross_entropy(x2 @ w2.T, target.tolist())
    (3 * expected).backward()
    for value, truth in ((loss, expected), (x.grad, x2.grad), (w.grad, w2.grad)):
        torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)


def test_bfloat16_errs_at_most_twice_as_much_as_plain_pytorch() -> None:
    x, w = (torch.randn(n, 32).bfloat16() for n in (200, 50))
    target = torch.randint(0, 50, (200,))

    def gradients(dtype: torch.dtype, ours: bool) -> list[torch.Tensor]:
        a, b = (t.to(dtype, copy=True).requires_grad_() for t in (x, w))
        loss = cross_entropy(a, b, target, 64) if ours else torch.nn.functional.cross_entropy(a @ b.T, target)
        loss.backward()
        return [t.double() for t in (loss.detach(), a.grad, b.grad)]  # type: ignore[union-attr]

    truth, plain, ours = (
        gradients(torch.float64, False),
        gradients(torch.bfloat16, False),
        gradients(torch.bfloat16, True),
    )
    for t, p, o in zip(truth, plain, ours, strict=True):
        assert (o - t).abs().max() <= 2 * (p - t).abs().max()


def test_large_logits_do_not_overflow() -> None:
    x = torch.full((2, 1), 1e4)
    assert cross_entropy(x, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 8) == pytest.approx(1e4)


def test_memory_holds_one_chunk_of_logits() -> None:
    """The largest tensor saved or made for the backward pass is the head's gradient, not (T, V)."""
    x, w = (torch.randn(n, 4, requires_grad=True) for n in (4096, 512))
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        cross_entropy(x, w, torch.zeros(4096, dtype=torch.long), 64)
    assert max(sizes) == max(x.numel(), w.numel())


def test_no_tokens_and_no_gradients() -> None:
    empty = torch.zeros(0, 4)
    assert cross_entropy(empty, torch.randn(5, 4), torch.zeros(0, dtype=torch.long), 8) == 0
