"""The kernel of rotary positions against the definition in float64, at odd sizes and strides, and its way back."""

import pytest
import torch

from hmoe.kernels.rotation import rotate_pairs
from hmoe.model import rotary
from tests.kernels.cases import INTERPRETED

PLACES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the interpreter")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
pytestmark = [pytest.mark.usefixtures("unwritten_is_nan"), pytest.mark.parametrize("device", PLACES)]


def definition(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.double().chunk(2, -1)
    return torch.cat(
        [first * cos.double() - second * sin.double(), second * cos.double() + first * sin.double()], -1
    )


def table(batch: int, length: int, half: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randn(batch, 1, length, half, device=device)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(("batch", "tables"), [(1, 1), (3, 1), (3, 3)], ids=["one", "shared", "each its own"])
@pytest.mark.parametrize(("heads", "length", "width"), [(1, 1, 2), (3, 7, 24), (2, 9, 40)])
def test_it_is_the_definition(
    batch: int, tables: int, heads: int, length: int, width: int, device: str
) -> None:
    cos, sin = table(tables, length, width // 2, device)
    plain = torch.randn(batch, heads, length, width, device=device)
    transposed = torch.randn(batch, length, heads, width, device=device).transpose(
        1, 2
    )  # as attention gives it
    part = torch.randn(batch, heads, length, 2 * width, device=device)[..., ::2]
    for x in (plain, transposed, part):
        torch.testing.assert_close(
            rotate_pairs(x, cos, sin).double(), definition(x, cos, sin), rtol=1e-6, atol=1e-6
        )


def test_no_row_is_no_launch(device: str) -> None:
    assert rotate_pairs(torch.zeros(2, 3, 0, 8, device=device), *table(1, 0, 4, device)).shape == (2, 3, 0, 8)


def test_low_precision_rounds_once(device: str) -> None:
    x, (cos, sin) = torch.randn(2, 3, 5, 16, device=device).half(), table(1, 5, 8, device)
    error = rotate_pairs(x, cos.half(), sin.half()).double() - definition(x, cos.half(), sin.half())
    assert error.abs().max() <= torch.finfo(torch.half).eps * x.abs().max()


def test_the_gradient_is_rotated_back(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "can_fuse", lambda x: x.dtype == torch.float32)
    table_ = table(1, 5, 4, device)
    x = torch.randn(2, 3, 5, 8, device=device, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    weight = torch.randn(2, 3, 5, 8, device=device)
    (rotary.rotate_heads(x, table_) * weight).sum().backward()
    (rotary.rotate_heads(twin, tuple(t.double() for t in table_)) * weight).sum().backward()  # type: ignore[arg-type]
    torch.testing.assert_close(x.grad, twin.grad, check_dtype=False, rtol=1e-5, atol=1e-5)
