"""AdamW part by part has the bits of AdamW on the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmoe.parallel import expert_update
from hmoe.parallel.expert_update import Scratch, list_spans, update_lines

GROUP = {
    "betas": (0.9, 0.95),
    "lr": 1e-2,
    "weight_decay": 0.1,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
}


def update_by_parts(tensors: list[torch.Tensor], cuts: list[int], step: torch.Tensor) -> None:
    """Update tensors, each part between two cuts by itself."""
    total = len(tensors[0])
    scratch = Scratch(total, tensors[0].dtype, torch.device("cpu"))
    for first, end in zip([0, *cuts], [*cuts, total], strict=True):
        seen = 0
        for span in list_spans(first, end - first, total, tensors[0].itemsize):
            lines, parts = scratch.open_span(span)
            own = slice(span.first, span.first + span.length)
            for part, tensor in zip(parts, tensors, strict=True):
                part.copy_(tensor[own])
            update_lines(lines, step, GROUP, None)
            for part, tensor in zip(parts, tensors, strict=True):
                tensor[own] = part
            seen += span.length
        assert seen == end - first


def check(total: int, cuts: list[int], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights, gradients, first, second = (torch.randn(total, generator=generator) for _ in range(4))
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    moments = {"exp_avg": first.clone(), "exp_avg_sq": second.abs()}
    optimizer.state[parameter] = {"step": torch.tensor(3.0), **moments}
    parameter.grad = gradients.clone()
    parts = [weights.clone(), gradients.clone(), first.clone(), second.abs()]
    optimizer.step()
    update_by_parts(parts, cuts, torch.tensor(3.0))
    assert torch.equal(parts[0], parameter.data)
    assert torch.equal(parts[2], moments["exp_avg"])
    assert torch.equal(parts[3], moments["exp_avg_sq"])


@settings(deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(0, 400), max_size=6), st.integers(0, 99))
def test_any_parts_have_the_bits_of_the_whole(total: int, cuts: list[int], seed: int) -> None:
    check(total, sorted(min(cut, total) for cut in cuts), seed)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_change_no_bit_nor_do_chunks(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_update, "CHUNK_NUMBERS", 1 << 14)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        check(100_003, [1, 5_000, 5_003, 70_001, 100_001])
    finally:
        torch.set_num_threads(before)
