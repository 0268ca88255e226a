"""What only a GPU can show: no synchronisation with the host, the choice of Triton, compiled graphs.

`make test-gpu` runs it.
"""

from collections.abc import Iterator

import pytest
import torch

import hmoe
from hmoe.kernels import choice, expert_ffn
from hmoe.kernels.layer import Layer
from tests.kernels.cases import arguments, gradient, low_gates, run

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    """Any wait of the host for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize(
    "case", ["mixed", "64 experts", "one expert takes everything", "top-p, one expert empty"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_gives_the_same_bits_twice(dtype: torch.dtype, case: str) -> None:
    values, routing, widths = arguments(case, "cuda")
    values, grad = low_gates(values, dtype), gradient(values)
    first, second = (run("triton", values, routing, widths, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


SPECS = [
    hmoe.TopK(2),
    hmoe.TopP(0.6),
    hmoe.TopK(2, capacity_factor=1.0),
    hmoe.TopK(3, scores="sigmoid", bias_rate=1e-3),
]


def layer(spec: hmoe.TopK | hmoe.TopP) -> tuple[hmoe.MoE, torch.Tensor, torch.Tensor]:
    moe = hmoe.MoE(64, (16, 48, 160, 32), spec).cuda().bfloat16()
    moe.check_finite = False
    torch.nn.init.normal_(moe.router.weight, std=0.1)
    x, grad = (torch.randn(513, 64, device="cuda").bfloat16() for _ in range(2))
    return moe, x.requires_grad_(), grad


def gradients(moe: hmoe.MoE, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    x.grad = None
    moe.zero_grad()
    y, routing = moe(x)
    torch.autograd.backward(
        [y, hmoe.router_z(routing) + hmoe.parameter_penalty(routing, moe.widths)], [grad, None]
    )
    return [y.detach(), *(p.grad.clone() for p in (x, *moe.parameters()) if p.grad is not None)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_layer_in_training_never_waits_for_the_device(
    spec: hmoe.TopK | hmoe.TopP, request: pytest.FixtureRequest
) -> None:
    moe, x, grad = layer(spec)
    gradients(moe, x, grad)  # compiles, and copies what never changes
    request.getfixturevalue("no_synchronisation")
    gradients(moe, x, grad)
    assert x.grad is not None


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_layer_gives_the_same_bits_twice(spec: hmoe.TopK | hmoe.TopP) -> None:
    moe, x, grad = layer(spec)
    first, second = gradients(moe, x, grad), gradients(moe, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("spec", [hmoe.TopK(2), hmoe.TopP(0.6)], ids=str)
def test_a_cuda_graph_holds_a_layer_after_a_first_call(spec: hmoe.TopK | hmoe.TopP) -> None:
    moe, x, grad = layer(spec)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            expected = gradients(moe, x, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(moe, x, grad)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def test_a_capture_before_the_first_call_is_refused_in_a_line() -> None:
    moe = hmoe.MoE(64, (16, 48, 176, 32), hmoe.TopK(2)).cuda().bfloat16()
    moe.check_finite = False
    x = torch.randn(17, 64, device="cuda").bfloat16()
    with (
        pytest.raises(hmoe.ConfigError, match="before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        moe(x)


def test_triton_is_chosen_for_low_precision() -> None:
    for dtype, expected in (
        (torch.bfloat16, "triton"),
        (torch.float16, "triton"),
        (torch.float32, "loop"),
        (torch.float64, "reference"),
    ):
        values, routing, widths = arguments("64 experts", "cuda")
        x, gate, *weights = low_gates(values, dtype)
        assert (
            choice.choose_backend(Layer(x, routing.token_N, gate, routing.num_tokens_E, *weights, widths))
            == expected
        )


@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore")
def test_it_compiles_whole(spec: hmoe.TopK | hmoe.TopP, backend: str) -> None:
    torch._dynamo.reset()
    moe = hmoe.MoE(64, (16, 48, 160, 32), spec).cuda().bfloat16()
    torch.nn.init.normal_(moe.router.weight, std=0.1)
    x, grad = (torch.randn(130, 64, device="cuda").bfloat16() for _ in range(2))
    results = []
    for layer in (moe, torch.compile(moe, fullgraph=True, backend=backend)):
        moe.zero_grad()
        inputs = x.clone().requires_grad_()
        layer(inputs)[0].backward(grad)
        results.append([inputs.grad, *(p.grad.clone() for p in moe.parameters())])  # type: ignore[union-attr]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))  # type: ignore[union-attr]


def test_a_real_shape_against_the_definition() -> None:
    """0.4B, 8192 tokens, bfloat16: error at most twice that of plain PyTorch, both against float64."""
    torch.manual_seed(0)
    moe = hmoe.MoE(768, hmoe.arithmetic(12288, 8), hmoe.TopK(2)).cuda()
    x = torch.randn(8192, 768, device="cuda").bfloat16()
    with torch.no_grad():
        routing = moe.router(x)
        weights = [w.bfloat16() for w in (moe.w_gate, moe.w_up, moe.w_down)]
        outputs = {}
        for name, dtype in (
            ("reference", torch.float64),
            ("reference", torch.bfloat16),
            ("triton", torch.bfloat16),
        ):
            converted = [w.to(dtype) for w in weights]
            pairs = (
                routing.token_N,
                routing.gate_N.to(torch.float64 if dtype == torch.float64 else torch.float32),
            )
            y = expert_ffn(x.to(dtype), *pairs, routing.num_tokens_E, *converted, moe.widths, name)
            outputs[name, dtype] = y.double()
    truth = outputs["reference", torch.float64]
    errors = {key: float((y - truth).abs().max()) for key, y in outputs.items()}
    assert errors["triton", torch.bfloat16] <= 2 * errors["reference", torch.bfloat16]
