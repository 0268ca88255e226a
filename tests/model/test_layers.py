"""RMSNorm by few passes against PyTorch's, whose gradients and precision it must have."""

import pytest
import torch
import torch.nn.functional as F

from hmoe.model.layers import RMSNorm

EPS = 1e-5


def run_both(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return outputs and gradients of x and weight, of the layer and of PyTorch, for the same inputs."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (
        torch.randn(7, 300, 32, generator=generator, dtype=torch.float64).to(dtype) * 3 for _ in range(2)
    )
    norm = RMSNorm(32, EPS).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
    results = []
    for run in (norm, lambda x: F.rms_norm(x, norm.weight.shape, norm.weight, EPS)):
        x_leaf = x.clone().requires_grad_()
        y = run(x_leaf)
        results.append([y.detach(), *torch.autograd.grad(y, (x_leaf, norm.weight), dy)])
    return results[0], results[1]


def test_norm_and_its_gradients_are_pytorchs() -> None:
    for ours, expected in zip(*run_both(torch.float64), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_norm_in_float32_errs_at_most_twice_as_much_as_pytorchs() -> None:
    exact = run_both(torch.float64)[1]
    for ours, plain, reference in zip(*run_both(torch.float32), exact, strict=True):
        # Inputs are rounded once for both, so the error of rounding them is part of both.
        assert (ours - reference).norm() <= 2 * (plain - reference).norm()


def test_norm_can_be_differentiated_twice() -> None:
    norm, x = RMSNorm(5, EPS).double(), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(norm, (x,))
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("frozen", ["weight", "x"])
def test_frozen_inputs_of_the_norm_take_no_gradient(frozen: str) -> None:
    norm, x = RMSNorm(5, EPS).double(), torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    tensors = {"weight": norm.weight, "x": x}
    tensors[frozen].requires_grad_(False)
    leaf = tensors["x" if frozen == "weight" else "weight"]
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), leaf, create_graph=True)
    assert gradient.requires_grad
    torch.autograd.backward(gradient.sum())
    assert leaf.grad is not None
    assert tensors[frozen].grad is None
