import pytest
import torch

import hmoe
from tests import oracles

WIDTHS = (5, 16, 3, 24)
SPECS = [hmoe.TopK(2), hmoe.TopK(1), hmoe.TopK(4), hmoe.TopP(0.6), hmoe.TopP(1.0), hmoe.TopP(1e-9)]


def limits(spec: hmoe.TopK | hmoe.TopP) -> dict[str, float]:
    return {"k": spec.k} if isinstance(spec, hmoe.TopK) else {"p": spec.p}


def layer(spec: hmoe.TopK | hmoe.TopP) -> hmoe.MoE:
    moe = hmoe.MoE(12, WIDTHS, spec).double()
    torch.nn.init.normal_(moe.router.weight)
    return moe


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 19])
def test_output_gradients_and_losses_are_the_oracle(spec: hmoe.TopK | hmoe.TopP, tokens: int) -> None:
    moe = layer(spec)
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    y, routing = moe(x)
    aux = (
        hmoe.load_balance(routing)
        + 3 * hmoe.parameter_penalty(routing, WIDTHS)
        + 5 * hmoe.router_entropy(routing)
    )
    aux = aux + 7 * hmoe.router_z(routing)
    (y * grad).sum().add(aux).backward()

    x2 = x.detach().clone().requires_grad_()
    router = moe.router.weight.detach().clone().requires_grad_()
    experts = [tuple(w.clone().requires_grad_() for w in moe.expert(i)) for i in range(4)]
    y2, choices, probs = oracles.moe(x2, router, experts, **limits(spec))  # type: ignore[arg-type]
    torch.testing.assert_close(y, y2, rtol=1e-11, atol=1e-11)
    if tokens:
        aux2 = oracles.load_balance(choices, probs) + 5 * oracles.router_entropy(probs)
        aux2 = aux2 + 3 * oracles.parameter_penalty(choices, probs, list(WIDTHS), sum(WIDTHS) / 4)
        aux2 = aux2 + 7 * oracles.router_z(x2 @ router.T)
        torch.testing.assert_close(aux, aux2, rtol=1e-11, atol=1e-11)
        (y2 * grad).sum().add(aux2).backward()
        torch.testing.assert_close(x.grad, x2.grad, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(moe.router.weight.grad, router.grad, rtol=1e-10, atol=1e-11)
    else:
        assert aux == 0
        assert (moe.router.weight.grad == 0).all()
    for i in range(4):
        for got, weight in zip(moe.expert_grad(i), experts[i], strict=True):
            expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


def test_expert_views_have_the_promised_shapes_and_write_through() -> None:
    moe = layer(hmoe.TopK(2))
    assert moe.widths == WIDTHS
    assert moe.router.weight.shape == (4, 12)
    for i, width in enumerate(WIDTHS):
        assert [tuple(w.shape) for w in moe.expert(i)] == [(width, 12), (width, 12), (12, width)]
    before = moe(torch.ones(1, 12, dtype=torch.float64))[0]
    for i in range(4):
        moe.expert(i)[2].mul_(2)
    torch.testing.assert_close(moe(torch.ones(1, 12, dtype=torch.float64))[0], 2 * before)


def test_expert_grad_before_backward_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="run backward"):
        layer(hmoe.TopK(2)).expert_grad(0)


def test_every_expert_starts_with_the_same_output_scale() -> None:
    widths = hmoe.arithmetic(1024, 4, ratio=15)
    moe = hmoe.MoE(64, widths)
    x = torch.randn(2000, 64)
    scales = []
    for i in range(4):
        gate, up, down = moe.expert(i)
        scales.append(((torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T).std().item())
    assert max(scales) / min(scales) < 1.1


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12), (0, 12), (2, 0, 12)])
def test_leading_axes_are_kept(shape: tuple[int, ...]) -> None:
    y, _ = layer(hmoe.TopP(0.6))(torch.randn(shape, dtype=torch.float64))
    assert y.shape == shape


def test_permuting_tokens_permutes_outputs_and_a_token_does_not_see_its_batch() -> None:
    moe = layer(hmoe.TopP(0.6))
    x = torch.randn(20, 12, dtype=torch.float64)
    order = torch.randperm(20)
    y = moe(x)[0]
    torch.testing.assert_close(moe(x[order])[0], y[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moe(x[3:4])[0], y[3:4], rtol=1e-12, atol=1e-12)


def test_one_expert_that_takes_everything_is_that_dense_ffn() -> None:
    moe = layer(hmoe.TopK(1))
    x = torch.randn(20, 12, dtype=torch.float64).abs()
    with torch.no_grad():
        moe.router.weight.zero_()[2] = 1.0
    y, routing = moe(x)
    assert routing.num_tokens_E.tolist() == [0, 0, 20, 0]
    torch.testing.assert_close(y, torch.stack([oracles.expert(row, moe.expert(2)) for row in x]))
    y.sum().backward()
    assert (moe.expert_grad(0)[0] == 0).all()


def test_non_finite_input_raises_or_gives_nan_but_never_a_value() -> None:
    moe = layer(hmoe.TopK(2))
    x = torch.randn(5, 12, dtype=torch.float64)
    x[3, 0] = float("nan")
    with pytest.raises(hmoe.NonFiniteError, match="first: token 3"):
        moe(x)
    moe.check_finite = False
    y, _ = moe(x)
    assert y[3].isnan().all()
    assert y[[0, 1, 2, 4]].isfinite().all()


def test_autocast_computes_experts_in_low_precision_with_float32_weights() -> None:
    moe = hmoe.MoE(32, (16, 48), hmoe.TopK(1))
    x = torch.randn(9, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = moe(x)
    assert y.dtype == torch.bfloat16
    assert routing.gate_N.dtype == torch.float32
    y.float().sum().backward()
    assert moe.w_gate.grad is not None
    assert moe.w_gate.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(8, 7), (64,), (), (3, 0), (12, 1)])
def test_an_input_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(hmoe.ConfigError, match="last axis must be dim = 12"):
        layer(hmoe.TopK(2))(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dim", "widths"), [(0, (4,)), (4, ()), (4, (4, 0)), (4, (4.5, 2)), (8.0, (4,)), (4, "44")]
)
def test_bad_sizes(dim: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(hmoe.ConfigError):
        hmoe.MoE(dim, widths, hmoe.TopK(1))


def test_repr_is_one_line_that_tells_what_it_is() -> None:
    moe = layer(hmoe.TopK(2))
    shown = "MoE(dim=12, widths=(5, 16, 3, 24), router=top-2, 1,776 parameters in float64 on cpu)"
    assert repr(moe) == str(moe) == shown
    moe.backend = "loop"
    assert "router=top-2, backend='loop', 1,776" in repr(moe)
    large = hmoe.MoE(4, range(1, 65), hmoe.TopP(0.6), shared=3, hyper=hmoe.Hyper(2), device="meta")
    assert "widths=64 from 1 to 64, router=top-p 0.6, with shared and hyper, " in repr(large)
    assert repr(torch.nn.Sequential(moe)).count("\n") == 2
    assert "widths=(5, 16, 3, 24)" in repr(moe)


@pytest.mark.parametrize("name", ["expert", "expert_grad"])
def test_experts_are_counted_as_in_a_list(name: str) -> None:
    moe = layer(hmoe.TopK(4))
    moe(torch.randn(3, 12, dtype=torch.float64))[0].sum().backward()
    get = getattr(moe, name)
    for own, same in zip(get(-1), get(3), strict=True):
        assert own.data_ptr() == same.data_ptr()
    for i in (4, 9, -5):
        with pytest.raises(IndexError, match=f"^expert {i}: must be from 0 to 3, or from -4 to -1"):
            get(i)
    with pytest.raises(TypeError, match="float"):
        get(1.5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randint(0, 9, (4, 12)), "the input is torch.int64, must be floating point, such as the weights' t"),
        (torch.ones(4, 12, dtype=torch.bool), "the input is torch.bool, must be floating point"),
        (torch.ones(4, 12, dtype=torch.complex64), "the input is torch.complex64"),
        ([[1.0] * 12], "the input is of type list, must be a tensor"),
        (torch.ones(4, 12, device="meta"), "the input is on meta, the weights on cpu; move one"),
        (torch.ones(4, 12, dtype=torch.float16), "the input is torch.float16, the experts' weights are torch.float32"),
        (torch.ones(4, 12, dtype=torch.float64), r"the input is torch.float64, .* \(x.to\(torch.float32\)\)"),
    ],
)  # fmt: skip
def test_an_input_that_cannot_be_computed_is_one_clear_line(x: object, message: str) -> None:
    with pytest.raises(hmoe.ConfigError, match=message) as caught:
        hmoe.MoE(12, WIDTHS)(x)
    assert "\n" not in str(caught.value)


def test_type_and_device_of_the_parameters_are_arguments() -> None:
    moe = hmoe.MoE(12, WIDTHS, hmoe.TopK(2, bias_rate=0.1), dtype=torch.bfloat16, device="meta")
    types = {name: p.dtype for name, p in moe.named_parameters()}
    assert types.pop("router.bias_E") == torch.float32
    assert set(types.values()) == {torch.bfloat16}
    assert {p.device.type for p in moe.parameters()} == {"meta"}
    moe.to_empty(device="cpu")
    moe.reset_parameters()
    y, _ = moe.eval()(torch.randn(5, 12, dtype=torch.bfloat16))
    assert y.isfinite().all()
    assert y.dtype == torch.bfloat16
    for dtype in (torch.int64, "bfloat16"):
        with pytest.raises(hmoe.ConfigError, match="must be a floating-point type"):
            hmoe.MoE(12, WIDTHS, dtype=dtype)  # type: ignore[arg-type]


def test_weights_begin_as_the_docstring_says() -> None:
    moe = hmoe.MoE(64, (400, 1600))
    assert moe.router.weight.std().item() == pytest.approx(0.1 / 8, rel=0.2)
    for i, width in enumerate(moe.widths):
        for weight, std in zip(moe.expert(i), (1 / 8, 1 / 8, width**-0.5), strict=True):
            assert weight.std().item() == pytest.approx(std, rel=0.02)
