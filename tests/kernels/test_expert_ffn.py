"""Every backend against the float64 oracle: output and every gradient by name, at odd sizes."""

import pytest
import torch

from hmoe import ConfigError, TopK, TopP
from hmoe.kernels import NAMES as BACKENDS, expert_ffn
from hmoe.kernels.loop import bucket
from hmoe.model.router import Routing, route
from tests import oracles

DIM = 24
CASES = {  # widths, router, tokens
    "mixed": ((16, 5, 33, 64), TopK(2), 17),
    "one token": ((16, 5, 33, 64), TopK(2), 1),
    "no token": ((16, 5, 33, 64), TopK(2), 0),
    "one expert": ((7,), TopK(1), 9),
    "all experts": ((16, 5, 33), TopP(1.0), 11),
    "top-p": ((16, 5, 33, 64, 1), TopP(0.6), 40),
    "prime tokens": ((48, 96), TopK(1), 131),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMES = ("y", "dx", "dgate", "dw_gate", "dw_up", "dw_down")


def arguments(case: str, device: str = "cpu") -> tuple[list[torch.Tensor], Routing, tuple[int, ...]]:
    """float64 x, gate, w_gate, w_up, w_down; the pairs; the widths. Expert 0 of `top-p` gets no token."""
    widths, spec, tokens = CASES[case]
    torch.set_default_device(device)
    logits = torch.randn(tokens, len(widths), dtype=torch.float64)
    if case == "top-p":
        logits[:, 0] = -40
    routing = route(logits, spec)
    weights = [torch.randn(sum(widths), DIM, dtype=torch.float64) / DIM**0.5 for _ in range(3)]
    x = torch.randn(tokens, DIM, dtype=torch.float64)
    torch.set_default_device(None)
    return [x, routing.gate_N, *weights], routing, widths


def run(
    backend: str, values: list[torch.Tensor], routing: Routing, widths: tuple[int, ...], grad: torch.Tensor
) -> list[torch.Tensor]:
    x, gate, w_gate, w_up, w_down = (value.detach().clone().requires_grad_() for value in values)
    y = expert_ffn(x, routing.token_N, gate, routing.num_tokens_E, w_gate, w_up, w_down, widths, backend)
    y.backward(grad.to(y.dtype))
    return [y.detach(), *(v.grad for v in (x, gate, w_gate, w_up, w_down))]  # type: ignore[misc]


def oracle(
    values: list[torch.Tensor], routing: Routing, widths: tuple[int, ...], grad: torch.Tensor
) -> list[torch.Tensor]:
    x, gate, *weights = (value.detach().clone().requires_grad_() for value in values)
    parts = [w.split(widths) for w in weights]
    y = 0 * x + 0 * sum(v.sum() for v in (gate, *weights))
    for n, (t, e) in enumerate(zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True)):
        out = gate[n] * oracles.expert(x[t], (parts[0][e], parts[1][e], parts[2][e].T))
        y = y + torch.zeros_like(y).index_put((torch.tensor([t], device=y.device),), out[None])
    y.backward(grad)
    return [y.detach(), *(v.grad for v in (x, gate, *weights))]  # type: ignore[misc]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_is_the_oracle(backend: str, case: str, device: str) -> None:
    values, routing, widths = arguments(case, device)
    grad = torch.randn_like(values[0])
    for name, got, expected in zip(
        NAMES, run(backend, values, routing, widths, grad), oracle(values, routing, widths, grad), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["mixed", "top-p", "prime tokens", "one expert"])
@pytest.mark.parametrize("device", DEVICES)
def test_low_precision_errs_at_most_twice_as_much_as_plain_pytorch(device: str, case: str, dtype: torch.dtype) -> None:
    values, routing, widths = arguments(case, device)
    values = [value.to(dtype).double() for value in values]  # what both see exactly
    grad = torch.randn_like(values[0]).to(dtype).double()
    truth = oracle(values, routing, widths, grad)
    low = [value.to(dtype) for value in values]
    plain, ours = (run(backend, low, routing, widths, grad) for backend in ("reference", "loop"))
    for name, expected, p, o in zip(NAMES, truth, plain, ours, strict=True):
        error, allowed = (o.double() - expected).abs().max(), 2 * (p.double() - expected).abs().max()
        assert error <= allowed + 1e-7 * expected.abs().max(), f"{name}: error {error} above twice PyTorch's {allowed}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_input_and_expanded_gradient(backend: str) -> None:
    values, routing, widths = arguments("mixed")
    strided = [torch.stack([v, v], -1)[..., 0] for v in values]
    assert not strided[0].is_contiguous()
    grad = torch.ones((), dtype=torch.float64).expand_as(values[0])
    for got, expected in zip(
        run(backend, strided, routing, widths, grad), oracle(values, routing, widths, grad), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_expert_without_tokens_gets_zero_gradients() -> None:
    values, routing, widths = arguments("top-p")
    assert routing.num_tokens_E[0] == 0
    for backend in BACKENDS:
        *_, w_gate, w_up, w_down = run(backend, values, routing, widths, torch.ones_like(values[0]))
        assert all((w[: widths[0]] == 0).all() for w in (w_gate, w_up, w_down))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loop_gives_the_same_bits_twice(dtype: torch.dtype) -> None:
    values, routing, widths = arguments("prime tokens")
    low = [value.to(dtype) for value in values]
    grad = torch.randn_like(low[0])
    for first, second in zip(
        run("loop", low, routing, widths, grad), run("loop", low, routing, widths, grad), strict=True
    ):
        assert torch.equal(first, second)


def test_loop_saves_x_pre_activations_and_indices_only() -> None:
    values, routing, widths = arguments("prime tokens")
    low = [value.float().requires_grad_() for value in values]
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        x, gate, *weights = low
        expert_ffn(x, routing.token_N, gate, routing.num_tokens_E, *weights, widths, "loop")
    pairs = len(gate)
    pre_activations = 2 * sum(int(n) * h for n, h in zip(routing.num_tokens_E, widths, strict=True))
    indices = 2 * pairs + len(widths)  # token and order of pairs; counts
    assert sum(sizes) == x.numel() + pairs + sum(w.numel() for w in weights) + pre_activations + indices


def test_unknown_backend_is_named() -> None:
    values, routing, widths = arguments("mixed")
    with pytest.raises(ConfigError, match="must be one of reference, loop"):
        run("fastest", values, routing, widths, values[0])


def test_bucket_pads_little_and_makes_shapes_recur() -> None:
    sizes = [bucket(rows) for rows in range(1, 5000)]
    assert all(size >= rows and size % 32 == 0 for rows, size in enumerate(sizes, 1))
    assert all(size <= 1.0625 * rows + 1 for rows, size in enumerate(sizes, 1) if rows >= 512)
    assert len(set(sizes)) < 80
