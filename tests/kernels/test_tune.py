"""Tile shapes are measured on the tensors of the caller: what one shape leaves there must not reach the results."""

from collections.abc import Callable

import pytest
import torch

from hmoe import TopK
from hmoe.kernels.ragged import backward, forward, tune
from tests.kernels.cases import CASES, INTERPRETED, NAMES, known, largest_errors, low_gates, run

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
NARROW, WIDE = (16, 16, 32, 4, 1, 1), (16, 32, 32, 4, 1, 1)
TUNED = (forward.up_kernel, forward.down_kernel, backward.down_backward_kernel, backward.weight_kernel)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[tune.Shape, ...]], list[int]]:
    """Lets every kernel measure some shapes and take the last; returns a list that grows with every measurement."""

    def prepare(shapes: tuple[tune.Shape, ...]) -> list[int]:
        calls: list[int] = []

        def time_call(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
            call()
            calls.append(len(calls))
            return [-float(len(calls))] * len(quantiles)

        for kernel in TUNED:
            monkeypatch.setattr(kernel, "configs", tune.configs(shapes))
            monkeypatch.setattr(kernel, "cache", {})
            monkeypatch.setitem(vars(kernel), "do_bench", time_call)
        return calls

    return prepare


@pytest.mark.skipif(not INTERPRETED, reason="shapes for the interpreter")
@pytest.mark.parametrize("shapes", [(NARROW, WIDE), (WIDE, NARROW)], ids=["the wide one wins", "the narrow one wins"])
def test_the_first_call_of_a_tuning_key_is_right(
    shapes: tuple[tune.Shape, ...],
    measured: Callable[[tuple[tune.Shape, ...]], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = measured(shapes)
    monkeypatch.setitem(CASES, "two experts", (16, (32, 16), TopK(2), 3))
    values, routing, widths, grad, truth = known("two experts", "cpu", 0, torch.float32)
    for expected in (
        12,
        0,
    ):  # two shapes of up, down, d x, down backward and both products of weight gradients; then none
        calls.clear()
        results = run("triton", low_gates(values, torch.float32), routing, widths, grad)
        assert len(calls) == expected
        for name, error in zip(NAMES, largest_errors(truth, results), strict=True):
            assert error < 1e-5, f"{name}: {error}"  # NaN too


def test_memory_that_nobody_wrote_is_nan_in_these_tests() -> None:
    x = torch.ones(3)
    for empty in (torch.empty(5), x.new_empty(5), torch.empty_like(x)):
        assert empty.isnan().all()


def test_the_first_shape_only_leaves_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "INTERPRETED", False)
    monkeypatch.setattr(tune, "FIRST_ONLY", False)
    assert tune.candidates("up") == (*tune.SHAPES["up"], *tune.FLOAT32)
    monkeypatch.setattr(tune, "FIRST_ONLY", True)
    assert tune.candidates("up") == (tune.SHAPES["up"][0], *tune.FLOAT32)
