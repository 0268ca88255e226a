"""Sums in a fixed order: those of the slow recursion, whoever holds which part."""

import pytest
import torch

from hmoe.config.run import OptimConfig
from hmoe.parallel.fixed_order import TreeSum, measure_norm, sum_row_squares
from hmoe.train.optimizer import build_optimizer


def add_in_tree(leaves: list[torch.Tensor]) -> torch.Tensor:
    """The largest power of two below the number of leaves goes left, the rest right."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1
    while 2 * left < len(leaves):
        left *= 2
    return add_in_tree(leaves[:left]) + add_in_tree(leaves[left:])


@pytest.mark.parametrize("number", [*range(1, 18), 31, 33, 64])
def test_a_tree_sum_is_that_of_the_recursion(number: int) -> None:
    leaves = [torch.randn(11) * 10.0**place for place in torch.randint(-3, 3, (number,)).tolist()]
    tree = TreeSum()
    for _ in range(2):  # it begins anew
        for leaf in leaves:
            tree.add([leaf, None])
        total, nothing = tree.take()
        assert nothing is None
        assert torch.equal(total, add_in_tree(leaves))  # type: ignore[arg-type]
        assert torch.equal(leaves[0], leaves[0].clone())


def test_a_running_sum_is_another() -> None:
    leaves = [torch.randn(1000) for _ in range(12)]
    assert not torch.equal(sum(leaves, torch.zeros(1000)), add_in_tree(leaves))


def test_what_has_no_gradient_counts_as_zero() -> None:
    tree = TreeSum()
    for leaf in (None, torch.ones(2), None):
        tree.add([leaf])
    assert torch.equal(tree.take()[0], torch.ones(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(7,), (1, 5), (13, 1), (29, 37), (64, 1024), (5, 3, 11), (0, 4)])
def test_a_row_s_squares_do_not_depend_on_the_rows_beside_it(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    whole = sum_row_squares(tensor)
    torch.testing.assert_close(
        whole, tensor.double().square().flatten(1).sum(1) if tensor.ndim > 1 else tensor.double() ** 2
    )
    for first in range(len(tensor)):
        for last in (first + 1, first + 3, len(tensor)):
            assert torch.equal(sum_row_squares(tensor[first:last].clone()), whole[first:last])


def test_the_norm_is_the_root_of_all_squares() -> None:
    tensors = [torch.randn(3, 5), torch.randn(4)]
    norm = measure_norm(map(sum_row_squares, tensors), torch.float32)
    torch.testing.assert_close(norm, torch.cat([t.flatten() for t in tensors]).norm())
    assert measure_norm([], torch.float32) == 0


class Vector(torch.nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(values.clone())


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_the_optimizer_of_exact_mode_rounds_a_number_wherever_it_stands(offset: int) -> None:
    """An update of some rows is that of the whole tensor's rows; the fused one's is not, on some processors."""
    options = OptimConfig(lr=1e-2)
    values = torch.randn(20_011)
    gradients = [torch.randn(20_011) * 10.0 ** torch.empty(20_011).uniform_(-6, 2) for _ in range(4)]
    results = []
    for part in (slice(None), slice(offset, -5)):
        model = Vector(values[part])
        optimizer = build_optimizer(model, options, exact=True)
        assert not optimizer.defaults["fused"]
        for gradient in gradients:
            model.weight.grad = gradient[part].clone()
            optimizer.step()
        results.append(model.weight.detach())
    assert torch.equal(results[0][offset:-5], results[1])
