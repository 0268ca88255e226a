"""The custom operator and the choice of a backend.

The operator is put under torch.library's own checks, torch.compile and checkpointing; FSDP2 has it in
tests/parallel/test_sharded_step.py.
"""

import copy
import inspect

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hmoe
from hmoe.kernels import choice, expert_ffn
from hmoe.kernels.layer import Layer, bound_room, count_room
from hmoe.kernels.op import forward_op
from hmoe.model.router import route_tokens
from tests.kernels.cases import arguments

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # by torch.compile itself

SPECS = [hmoe.TopK(2), hmoe.TopP(0.6), hmoe.TopP(1.0)]
WIDTHS = (16, 48, 32, 16)


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch._dynamo.reset()


def moe(spec: hmoe.TopK | hmoe.TopP, dtype: torch.dtype = torch.float32) -> hmoe.MoE:
    layer = hmoe.MoE(32, WIDTHS, spec).to(dtype)
    torch.nn.init.normal_(layer.router.weight)
    return layer


def gradients(layer: torch.nn.Module, function: object, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, d x, then the gradients of all parameters, of a loss that reaches every part."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y, routing = function(x)  # type: ignore[operator]
    loss = y.float().square().sum() + hmoe.parameter_penalty(routing, WIDTHS) + hmoe.router_entropy(routing)
    loss.backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]  # type: ignore[list-item, union-attr]


def test_torch_library_finds_no_fault() -> None:
    values, routing, widths = arguments("mixed")
    x, gate, *weights = (v.float().requires_grad_() for v in values)
    layer = Layer(x, routing.token_N, gate, routing.num_tokens_E, *weights, widths)
    for name in ("loop", "exact", "cpu", ""):
        torch.library.opcheck(forward_op, (*layer, count_room(choice.get_backend("loop"), layer), name))


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        *((spec, torch.float32) for spec in SPECS),
        *(
            (hmoe.TopP(0.6), dtype) for dtype in (torch.bfloat16, torch.float64)
        ),  # whose pairs are padded, too
    ],
    ids=str,
)
def test_compiled_whole_it_gives_the_same(spec: hmoe.TopK | hmoe.TopP, dtype: torch.dtype) -> None:
    layer = moe(spec, dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (17, 40, 1):
        x = torch.randn(tokens, 32, dtype=dtype)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-11}[dtype]
        for actual, expected in zip(gradients(layer, compiled, x), gradients(layer, layer, x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spec", SPECS[:2], ids=str)  # a fixed number of experts, and one that changes
def test_new_token_numbers_and_routings_do_not_compile_again(spec: hmoe.TopK | hmoe.TopP) -> None:
    layer = moe(spec)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    gradients(layer, compiled, torch.randn(20, 32))
    with torch.compiler.set_stance("fail_on_recompile"):
        for tokens in (21, 50, 33, 50):
            gradients(layer, compiled, torch.randn(tokens, 32))


def test_a_whole_model_compiles_whole() -> None:
    from hmoe.model.cross_entropy import cross_entropy
    from hmoe.model.transformer import build_transformer
    from tests.model.test_transformer import config

    tokens = torch.randint(0, 29, (2, 7))
    shallow = build_transformer(config(kv_heads=2, layers=1), 0)
    compiled = torch.compile(shallow, fullgraph=True, backend="aot_eager")
    for shape in ((2, 7), (3, 11), (5, 4)):  # compiled for the first, then for all
        some = torch.randint(0, 29, shape)
        torch.testing.assert_close(compiled(some)[0], shallow(some)[0], rtol=1e-5, atol=1e-5)

    model = build_transformer(config(kv_heads=2), 0)

    def loss() -> torch.Tensor:
        return cross_entropy(model.hidden(tokens)[0].flatten(0, 1), model.head_weight, tokens.flatten(), 5)

    torch.compile(loss, fullgraph=True, backend="aot_eager")().backward()
    compiled_grads = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    loss().backward()
    for (name, parameter), grad in zip(model.named_parameters(), compiled_grads, strict=True):
        torch.testing.assert_close(
            grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_compiled_top_p_pads_its_pairs_and_top_k_does_not() -> None:
    logits = torch.randn(9, 4)
    for spec, pairs in ((hmoe.TopK(2), 18), (hmoe.TopP(0.6), 36)):
        eager = route_tokens(logits, spec)
        routing = torch.compile(route_tokens, fullgraph=True, backend="eager")(logits, spec)
        real = int(routing.num_tokens_E.sum())
        assert len(routing.token_N) == pairs
        assert len(eager.token_N) == real
        for name in ("token_N", "expert_N", "gate_N"):
            torch.testing.assert_close(getattr(routing, name)[:real], getattr(eager, name))
        assert (routing.gate_N[real:] == 0).all()


def test_activation_checkpointing_gives_the_same() -> None:
    layer, x = moe(hmoe.TopP(0.6)), torch.randn(19, 32)
    kept = gradients(layer, layer, x)
    again = gradients(layer, lambda x: checkpoint(layer, x, use_reentrant=False), x)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    x.requires_grad_()  # the old kind runs its first pass without gradients, and passes tensors only
    grads = []
    for y in (layer(x)[0], checkpoint(lambda x: layer(x)[0], x, use_reentrant=True)):
        x.grad = None
        y.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_fifty_steps_keep_every_gradient_near_the_definition() -> None:
    """A routing that changes at every step; the float64 definition is given the same weights each time."""
    fast, exact = moe(hmoe.TopP(0.6)), moe(hmoe.TopP(0.6)).double()
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2)
    target, counts = torch.randn(32, 32), set()
    for step in range(50):
        x = torch.randn(60, 32, generator=torch.Generator().manual_seed(step))
        exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
        for layer, data in ((fast, x), (exact, x.double())):
            layer.zero_grad()
            y, routing = layer(data)
            (y - data @ target.to(data.dtype)).square().mean().backward()
        counts.add(tuple(routing.num_tokens_E.tolist()))
        for (name, ours), true in zip(fast.named_parameters(), exact.parameters(), strict=True):
            error = (ours.grad.double() - true.grad).norm() / true.grad.norm()  # type: ignore[union-attr]
            assert error < 1e-5, f"step {step}, {name}: relative error {error}"
        optimizer.step()
    assert len(counts) > 25


def test_the_door_names_its_arguments() -> None:
    names = list(inspect.signature(expert_ffn).parameters)
    tensors = ["x_TD", "token_N", "gate_N", "num_tokens_E", "w_gate_FD", "w_up_FD", "w_down_FD"]
    assert names == [*tensors, "widths", "backend"]


def test_a_layer_can_be_told_its_backend() -> None:
    layer, x = moe(hmoe.TopK(2)), torch.randn(9, 32)
    expected = layer(x)[0]
    for name in ("reference", "loop", "exact", "cpu"):
        layer.backend = name
        torch.testing.assert_close(layer(x)[0], expected)
    layer.backend = "quick"
    with pytest.raises(hmoe.ConfigError, match="backend = 'quick', must be one of reference"):
        layer(x)


def test_the_choice_by_device_and_dtype() -> None:
    def of(device: str, dtype: torch.dtype, experts: int = 16, tokens: int = 64) -> str:
        x, ints = torch.empty(tokens, 32, dtype=dtype, device=device), torch.empty(2 * tokens, device=device)
        weights = (torch.empty(0, device=device),) * 3
        return choice.choose_backend(Layer(x, ints.long(), ints, ints, *weights, (16,) * experts))

    assert of("cpu", torch.float64) == of("meta", torch.float64) == "reference"
    assert of("cpu", torch.float32) == of("cpu", torch.bfloat16) == "cpu"
    assert of("meta", torch.bfloat16) == "loop"


@pytest.mark.parametrize("tokens", [41, 1025, 2049])
def test_the_bound_holds_for_every_routing(tokens: int) -> None:
    widths = (16, 2208, 48, 160)
    for seed in range(8):
        logits = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(seed)) * 3
        if seed % 2:
            logits[:, 1] += 40  # the widest takes everything
        for spec in (hmoe.TopK(1), hmoe.TopK(2), hmoe.TopK(4), hmoe.TopP(0.7)):
            routing = route_tokens(logits, spec)
            for dtype in (torch.float32, torch.bfloat16):
                pairs = (routing.token_N, routing.gate_N, routing.num_tokens_E)
                layer = Layer(logits.to(dtype), *pairs, *(logits,) * 3, widths)
                for name in ("loop", "exact", "cpu"):
                    assert count_room(choice.get_backend(name), layer) <= bound_room(layer)


@pytest.mark.parametrize("tokens", [1025, 2049])
def test_compiled_bfloat16_has_room_for_padded_rows(tokens: int) -> None:
    layer = moe(hmoe.TopP(1.0), torch.bfloat16)
    x = torch.randn(tokens, 32).bfloat16().requires_grad_()
    torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0].sum().backward()
    assert x.grad is not None


def test_no_zeros_are_made_for_outputs_without_a_gradient() -> None:
    seen: list[list[bool]] = []
    y = moe(hmoe.TopK(2))(torch.randn(9, 32, requires_grad=True))[0]
    node = y.grad_fn
    while node is not None and "hmoe" not in node.name():
        node = node.next_functions[0][0]
    assert node is not None
    node.register_prehook(lambda grads: seen.append([g is not None for g in grads]))
    y.sum().backward()
    assert seen == [[True, False, False, False]]


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # by forward mode itself
def test_forward_mode_derivatives_are_right_or_refused_but_never_dropped() -> None:
    from torch.autograd import forward_ad

    layer = moe(hmoe.TopK(2))
    x = torch.randn(5, 32)
    with torch.no_grad(), forward_ad.dual_level():
        layer.backend = "reference"
        assert forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))[0]).tangent is not None
        layer.backend = "cpu"
        with pytest.raises(
            hmoe.ConfigError, match="forward-mode derivatives: computed by backend = 'reference' only"
        ):
            layer(forward_ad.make_dual(x, x))


def test_the_definition_is_not_for_graphs() -> None:
    layer = moe(hmoe.TopK(2))
    layer.backend = "reference"
    with pytest.raises(Exception, match="cannot be compiled; nearest choice: loop"):
        torch.compile(layer, fullgraph=True, backend="eager")(torch.randn(5, 32))


@pytest.mark.parametrize(
    ("dtype", "experts", "tokens", "refused", "expected"),
    [
        (torch.bfloat16, 64, 64, None, "triton"),
        (torch.float16, 8, 64, None, "triton"),
        (torch.bfloat16, 64, 64, "no GPU of that kind", "loop"),
        (torch.bfloat16, 8, 32768, None, "triton"),
        (torch.float32, 64, 64, None, "loop"),
        (torch.float64, 64, 64, None, "reference"),
    ],
)
def test_the_choice_on_a_gpu(
    dtype: torch.dtype,
    experts: int,
    tokens: int,
    refused: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnGpu:
        device, shape = torch.device("cuda"), (tokens, 1024)

        def __init__(self) -> None:
            self.dtype = dtype

    monkeypatch.setattr(choice, "explain_refusal", lambda name, layer: refused)
    pairs = torch.empty(2 * tokens, device="meta")
    layer = Layer(OnGpu(), pairs, pairs, pairs, pairs, pairs, pairs, (2208,) * experts)  # type: ignore[arg-type]
    assert choice.choose_backend(layer) == expected


def test_deepcopy_and_state_dict_know_nothing_of_backends() -> None:
    layer = moe(hmoe.TopK(2))
    layer.backend = "loop"
    assert copy.deepcopy(layer).backend == "loop"
    assert set(layer.state_dict()) == {"w_gate", "w_up", "w_down", "router.weight"}
