"""Layers to compute, and the ways to compute them; shared by the kernel tests, on CPU and GPU."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from hmoe import TopK, TopP
from hmoe.kernels import expert_ffn, native
from hmoe.model.router import route_tokens
from hmoe.model.routing import Routing
from tests import oracles

CASES = {  # dim, widths, router, tokens
    "mixed": (32, (16, 48, 96, 32), TopK(2), 17),
    "one token": (32, (16, 48, 96, 32), TopK(2), 1),
    "few tokens": (48, (16, 80, 32), TopK(2), 3),
    "no token": (32, (16, 48, 96, 32), TopK(2), 0),
    "one expert": (32, (80,), TopK(1), 9),
    "all experts": (32, (16, 48, 96), TopP(1.0), 11),
    "top-p, one expert empty": (48, (16, 48, 32, 64, 16), TopP(0.6), 40),
    "one expert takes everything": (32, (16, 96, 48), TopK(1), 45),
    "prime tokens": (80, (48, 96), TopK(1), 131),
    "narrow and wide": (48, (16, 2208, 864, 48), TopK(2), 17),
    "64 experts": (32, tuple(16 * (1 + i % 7) for i in range(64)), TopK(8), 37),
    "515 tokens": (16, (16, 48, 32), TopK(2), 515),
    "4096 tokens": (16, (16, 48, 32), TopK(2), 4096),
}
ODD = {  # widths and dims that are no multiple of 16: not for Triton
    "odd widths": (24, (16, 5, 33, 64), TopK(2), 17),
    "odd dim": (37, (16, 1, 40), TopP(0.6), 41),
}
NAMES = ("y", "dx", "dgate", "dw_gate", "dw_up", "dw_down")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def arguments(
    case: str, device: str = "cpu", seed: int = 0
) -> tuple[list[torch.Tensor], Routing, tuple[int, ...]]:
    """float64 x, gate, w_gate, w_up, w_down; the pairs; the widths."""
    dim, widths, spec, tokens = {**CASES, **ODD}[case]
    generator = torch.Generator().manual_seed(100 * seed + len(case))
    logits = torch.randn(tokens, len(widths), dtype=torch.float64, generator=generator)
    if case == "top-p, one expert empty":
        logits[:, 0] = -40
    if case == "one expert takes everything":
        logits[:, 1] = 40
    weights = [
        torch.randn(sum(widths), dim, dtype=torch.float64, generator=generator) / dim**0.5 for _ in range(3)
    ]
    x = torch.randn(tokens, dim, dtype=torch.float64, generator=generator)
    with (
        torch.no_grad()
    ):  # in training, top-p on a GPU leaves room behind its pairs, which the oracle does not
        routing = route_tokens(logits.to(device), spec)
    return [x.to(device), routing.gate_N, *(w.to(device) for w in weights)], routing, widths


def gradient(values: list[torch.Tensor]) -> torch.Tensor:
    """What comes back from behind the layer."""
    return torch.randn(values[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(
        values[0].device
    )


def run(
    backend: str, values: list[torch.Tensor], routing: Routing, widths: tuple[int, ...], grad: torch.Tensor
) -> list[torch.Tensor]:
    """Output and gradients in the order of NAMES."""
    x, gate, w_gate, w_up, w_down = (value.detach().requires_grad_() for value in values)
    y = expert_ffn(x, routing.token_N, gate, routing.num_tokens_E, w_gate, w_up, w_down, widths, backend)
    y.backward(grad.to(y.dtype))
    return [y.detach(), *(v.grad for v in (x, gate, w_gate, w_up, w_down))]  # type: ignore[misc]


def oracle(
    values: list[torch.Tensor], routing: Routing, widths: tuple[int, ...], grad: torch.Tensor
) -> list[torch.Tensor]:
    """The same from `tests/oracles.py`, pair by pair in float64."""
    x, gate, *weights = (value.detach().cpu().clone().requires_grad_() for value in values)
    parts = [w.split(widths) for w in weights]
    rows = [0 * row for row in x]
    for n, (t, e) in enumerate(zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True)):
        rows[t] = rows[t] + gate[n] * oracles.expert(x[t], (parts[0][e], parts[1][e], parts[2][e].T))
    y = (torch.stack(rows) if rows else 0 * x) + 0 * sum(v.sum() for v in (gate, *weights))
    y.backward(grad.cpu())
    return [v.to(values[0].device) for v in (y.detach(), *(v.grad for v in (x, gate, *weights)))]  # type: ignore[union-attr]


def low_gates(values: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """In a precision; gates are float32 or better."""
    return [v.float() if i == 1 else v.to(dtype) for i, v in enumerate(values)]


@functools.lru_cache(maxsize=128)
def known(
    case: str, device: str, seed: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], Routing, tuple[int, ...], torch.Tensor, list[torch.Tensor]]:
    """Values and gradient that `dtype` holds exactly, in float64, and what the oracle makes of them."""
    values, routing, widths = arguments(case, device, seed)
    values = [value.to(dtype).double() for value in values]
    grad = gradient(values).to(dtype).double()
    return values, routing, widths, grad, oracle(values, routing, widths, grad)


def largest_errors(truth: list[torch.Tensor], results: list[torch.Tensor]) -> list[float]:
    """In the order of NAMES, relative to the largest true value."""
    pairs = zip(truth, results, strict=True)
    return [
        float((r.double() - t).abs().max() / t.abs().max().clamp(min=1e-30)) if t.numel() else 0.0
        for t, r in pairs
    ]


@contextmanager
def library(variant: str | None) -> Iterator[None]:
    """The C++ library as `conftest.native_libraries` built it, or none."""
    before = native.get_library
    native.get_library = (lambda: None) if variant is None else (lambda: LIBRARIES[variant])  # type: ignore[assignment]
    try:
        yield
    finally:
        native.get_library = before


LIBRARIES: dict[str, object] = {}  # filled by the fixture

LIBRARY_VARIANTS = ("AMX", "AVX-512 BF16")


def engine(name: str, request: pytest.FixtureRequest) -> str:
    """`cpu+AMX` -> the backend `cpu`, with that library in use for the test; others as they are."""
    backend, _, variant = name.partition("+")
    if variant:
        libraries = request.getfixturevalue("native_libraries")
        if variant not in libraries:
            pytest.skip(f"no {variant} library here: {libraries['why']}")
        manager, threads = library(variant), torch.get_num_threads()
        manager.__enter__()
        torch.set_num_threads(
            2
        )  # the suite runs with one; the library's own threads are part of what is tested
        request.addfinalizer(lambda: (torch.set_num_threads(threads), manager.__exit__(None, None, None)))
    return backend
