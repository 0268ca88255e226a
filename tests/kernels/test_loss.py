"""The kernel of the language-model loss against PyTorch's in float64.

Values and both gradients, ignored targets and odd sizes are compared.
"""

import pytest
import torch
import torch.nn.functional as F

from hmoe.kernels import softmax_loss
from hmoe.model import cross_entropy as module
from hmoe.model.cross_entropy import cross_entropy
from tests.kernels.cases import INTERPRETED

PLACES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the interpreter")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
pytestmark = [pytest.mark.usefixtures("unwritten_is_nan"), pytest.mark.parametrize("device", PLACES)]


@pytest.mark.parametrize(("tokens", "vocab", "chunk"), [(0, 5, 2), (1, 3, 8), (7, 300, 3), (5, 4097, 8)])
def test_it_is_pytorchs_loss(
    tokens: int, vocab: int, chunk: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "can_fuse", lambda logits: logits.dtype == torch.float32)
    x, w = torch.randn(tokens, 6, device=device), torch.randn(vocab, 6, device=device)
    target = torch.randint(vocab, (tokens,), device=device)
    if tokens > 2:
        target[1] = -100
    leaves = x.requires_grad_(), w.requires_grad_()
    twins = [leaf.detach().double().requires_grad_() for leaf in leaves]
    loss = cross_entropy(*leaves, target, chunk)
    truth = (
        F.cross_entropy(twins[0] @ twins[1].T, target) if tokens else 0 * twins[0].sum() + 0 * twins[1].sum()
    )
    (3 * loss).backward()
    (3 * truth).backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    for leaf, twin in zip(leaves, twins, strict=True):
        torch.testing.assert_close(leaf.grad, twin.grad, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
def test_rows_with_infinities_and_nan(device: str) -> None:
    inf = torch.inf
    rows = [[-inf, -inf, 1.0, 2.0], [-inf] * 4, [0.0, torch.nan, 0.0, 0.0], [inf, 0.0, 0.0, 0.0]]
    logits, target = torch.tensor(rows, device=device), torch.tensor([2, 2, 0, 1], device=device)
    nll = softmax_loss(logits.clone(), target, torch.ones((), device=device), -100, False)
    assert nll[0].item() == pytest.approx(F.cross_entropy(logits[:1], target[:1]).item())
    assert not nll[1:].isfinite().any()


def test_a_target_that_is_no_row_of_the_head_ends_in_an_assertion(device: str) -> None:
    if device == "cuda":
        pytest.skip("nothing on the device works after an assertion")
    for wrong in (-1, 5):
        with pytest.raises(RuntimeError, match="no row of the head"):
            softmax_loss(torch.zeros(2, 5), torch.tensor([0, wrong]), torch.ones(()), -100, False)


def test_without_a_derivative_the_logits_stay(device: str) -> None:
    logits, target = torch.randn(4, 9, device=device), torch.tensor([0, 8, -100, 3], device=device)
    before = logits.clone()
    softmax_loss(logits, target, torch.ones((), device=device), -100, False)
    assert torch.equal(logits, before)
    softmax_loss(logits, target, torch.tensor(2.0, device=device), -100, True)
    assert (logits[2] == 0).all()
    torch.testing.assert_close(logits[1, 8], (before[1].softmax(0)[8] - 1) / 2)
