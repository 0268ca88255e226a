"""Training with experts that lie elsewhere has the bits of training without: losses, norms, weights and moments."""

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import hmoe
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer, build_transformer, set_backend, set_check_finite
from hmoe.parallel.expert_storage import HostStorage
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_layer import ExpertHome, OffloadedLayer
from hmoe.parallel.offloaded_model import build_offloaded_transformer
from hmoe.specs.experts import Hyper, ZeroExperts
from hmoe.specs.model import ModelSpec
from tests.parallel.offload_helpers import CPU, WIDTHS, Trainer, count_least, make_spec, opened

CASES: dict[str, dict[str, Any]] = {
    "top-p": {},
    "top-1": {"router": hmoe.TopK(k=1)},
    "one micro-batch": {"parts": 1},
    "no clipping, one layer": {"clip": None, "layers": 1},
    "bfloat16": {"bf16": True},
    "checkpointing": {"recomputes": True},
    "host": {"folder": False},
    "lines that are not whole": {"dim": 6, "widths": (1, 2, 3, 50)},
    "dim 2": {"dim": 2, "widths": (1, 1, 3)},
    "30 times as wide": {"widths": (300, 10, 10, 10)},
    "all at hand": {"most": 10**6},
    "extras": {"shared": 7, "zero": ZeroExperts(null=1, copy=1, constant=1), "hyper": Hyper(dim=4)},
    "expert choice": {"router": hmoe.ExpertChoice()},
    "bias": {"router": hmoe.TopK(k=2, bias_rate=0.1)},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_training_without(case: str, tmp_path: Path) -> None:
    options = dict(CASES[case])
    folder = tmp_path if options.pop("folder", True) else None
    most, parts = options.pop("most", None), options.pop("parts", 3)
    loop = {"clip": options.pop("clip", 0.1), "bf16": options.pop("bf16", False)}
    recomputes = options.pop("recomputes", False)
    spec = make_spec(**options)
    results = []
    for offloads in (False, True):
        model = build_transformer(spec, seed=1)
        set_check_finite(model, False)
        set_backend(model, "loop")
        model.activation_checkpointing = recomputes
        with opened(model, folder, most) if offloads else contextlib.nullcontext() as offload:
            trainer = Trainer(model, offload, **loop)
            results.append((trainer.train(3, parts), trainer.told))
    assert results[0] == results[1]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_and_pins_change_no_bit(num_threads: int, tmp_path: Path) -> None:
    before, digests = torch.get_num_threads(), []
    torch.set_num_threads(num_threads)
    try:
        for offloads in (False, True):
            model = build_transformer(make_spec(layers=3), seed=1)
            most = 2 * count_least(model.config)
            with opened(model, tmp_path, most) if offloads else contextlib.nullcontext() as offload:
                trainer = Trainer(model, offload)
                for step in range(3):
                    if offload is not None:
                        offload.pin_busiest([[step, 1, 2, 3, 4, 5]] * 3)
                    digest = trainer.train(1, 2)
                digests.append(digest)
    finally:
        torch.set_num_threads(before)
    assert digests[0] == digests[1]


def test_weights_are_drawn_as_without(tmp_path: Path) -> None:
    spec = make_spec(shared=5)
    expected = build_transformer(spec, seed=7)
    opened: list[ExpertOffload] = []

    def offloads(model: Transformer) -> ExpertOffload:
        opened.append(ExpertOffload(model, tmp_path, CPU, count_least(spec)))
        return opened[0]

    model = build_offloaded_transformer(spec, 7, CPU, offloads)
    (offload,) = opened
    with offload.look_at_all():
        assert [name for name, _ in model.named_parameters()] == [n for n, _ in expected.named_parameters()]
        for (name, own), whole in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(own, whole), name
    offload.close()


def test_a_step_that_is_not_taken_leaves_everything(tmp_path: Path) -> None:
    """Gradients of a skipped step are gone, and those of the next one are its own."""
    spec = make_spec()
    digests = []
    for skips in (False, True):
        model = build_transformer(spec, seed=1)
        with opened(model, tmp_path) as offload:
            trainer = Trainer(model, offload)
            trainer.train(1, 2)
            if skips:
                state = trainer.generator.get_state()
                trainer.read(16, 1)
                with offload.attach_gradients():
                    assert all(p.grad is not None for p in trainer.parameters)
                trainer.optimizer.zero_grad(set_to_none=True)
                trainer.generator.set_state(state)
            digests.append(trainer.train(2, 2))
    assert digests[0] == digests[1]


def test_what_reads_alone_needs_no_more_than_what_fits(tmp_path: Path) -> None:
    spec = make_spec(layers=3)
    model = build_transformer(spec, seed=1)
    tokens = torch.arange(64)[None]
    with torch.no_grad():
        expected = model(tokens)[0]
    with opened(model, tmp_path) as offload, torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(tokens)[0], expected)
        assert offload.cache._num_bytes <= count_least(spec)
        assert offload.storage.moved.read_bytes > 2 * count_least(spec)


def test_frozen_experts_are_read_and_stay(tmp_path: Path) -> None:
    model = build_transformer(make_spec(), seed=1)
    for block in model.blocks:
        for name in ("w_gate", "w_up", "w_down"):
            getattr(block.ffn, name).requires_grad_(False)
    expected = build_transformer(make_spec(), seed=1)
    with opened(model, tmp_path) as offload:
        Trainer(model, offload).train(2, 2)
        with offload.look_at_all():
            for block, before in zip(model.blocks, expected.blocks, strict=True):
                assert torch.equal(block.ffn.w_up, before.ffn.w_up)
                assert not torch.equal(block.ffn.router.weight, before.ffn.router.weight)


def test_what_is_changed_where_it_lies_is_used(tmp_path: Path) -> None:
    model = build_transformer(make_spec(layers=1), seed=1)
    tokens = torch.arange(9)[None]
    with opened(model, tmp_path, 10**6) as offload, torch.no_grad():
        before = model(tokens)[0]
        with offload.look_at_all(changes=True):
            for expert in range(len(WIDTHS)):
                model.blocks[0].ffn.expert(expert)[2].zero_()
        after = model(tokens)[0]
    assert not torch.equal(before, after)
    plain = build_transformer(make_spec(layers=1), seed=1)
    with torch.no_grad():
        plain.blocks[0].ffn.w_down.zero_()
        assert torch.equal(plain(tokens)[0], after)


def test_what_cannot_be_offloaded_is_told(tmp_path: Path) -> None:
    model = build_transformer(make_spec(), seed=1)
    least = count_least(model.config)
    with pytest.raises(
        ConfigError, match=f"most_bytes = {least - 1}: must hold the two widest.*nearest is {least}"
    ):
        ExpertOffload(model, tmp_path, CPU, least - 1)
    dense = build_transformer(ModelSpec(dim=8, layers=1, heads=1, vocab=8, ffn=8), seed=1)
    with pytest.raises(ConfigError, match=r"no layer of hmoe\.MoE"):
        ExpertOffload(dense, tmp_path, CPU, 1)
    with opened(model, tmp_path), pytest.raises(ConfigError, match=r"the input is torch\.float64"):
        model.blocks[0].ffn(torch.randn(1, 24, dtype=torch.float64))


def test_a_layer_that_no_pass_reached_stays(tmp_path: Path) -> None:
    """As AdamW passes over parameters without gradients: those of an earlier step are not applied again."""

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.ModuleList(hmoe.MoE(8, (4, 16, 9), hmoe.TopK(2)) for _ in range(2))

    def train(folder: Path | None) -> list[torch.Tensor]:
        model = Two()
        offload = None if folder is None else ExpertOffload(model, folder, CPU, 3072)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
        for layers in ((0, 1), (0,), (1,), (0, 1)):
            for layer in layers:
                model.layers[layer](x)[0].square().sum().backward()
            if offload is not None:
                with offload.attach_gradients():
                    assert [moe.w_up.grad is not None for moe in model.layers] == [0 in layers, 1 in layers]
            optimizer.step()
            if offload is not None:
                offload.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        with contextlib.nullcontext() if offload is None else offload.look_at_all():
            weights = [p.detach().clone() for p in model.parameters()]
        if offload is not None:
            offload.close()
        return weights

    for own, expected in zip(train(tmp_path), train(None), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "amsgrad", "before"])
def test_other_optimisers_are_told(kind: str, tmp_path: Path) -> None:
    model = build_transformer(make_spec(), seed=1)
    before = torch.optim.AdamW(model.parameters(), fused=True)
    with opened(model, tmp_path) as offload:
        Trainer(model, offload).read(4, 1)
        with offload.attach_gradients():
            pass
        optimizer = {
            "SGD": lambda: torch.optim.SGD(model.parameters(), lr=0.1),
            "Adam": lambda: torch.optim.Adam(model.parameters(), fused=True),
            "AdamW": lambda: torch.optim.AdamW(model.parameters()),
            "amsgrad": lambda: torch.optim.AdamW(model.parameters(), amsgrad=True, fused=True),
            "before": lambda: before,
        }[kind]()
        told = (
            "make it after"
            if kind == "before"
            else r"must be torch\.optim\.AdamW with fused=True and without amsgrad"
        )
        with pytest.raises(ConfigError, match=told):
            offload.step(optimizer)


def test_the_busiest_are_pinned_by_tokens_times_width(tmp_path: Path) -> None:
    spec = make_spec()
    assert spec.moe is not None
    widths = spec.moe.expert_widths
    model = build_transformer(spec, seed=1)
    room = 3 * 24 * 4 * (64 + 33)
    with opened(model, tmp_path, count_least(spec) + 2 * room) as offload:
        pairs = [[100 * (width == 64) + 90 * (width == 33) + 1 for width in widths], [1] * len(widths)]
        offload.pin_busiest(pairs)
        assert offload.cache._pinned == {(0, widths.index(64)), (0, widths.index(33))}


def test_passes_find_what_was_fetched_ahead(tmp_path: Path) -> None:
    """After a step all experts are updated and fetched before the next pass asks for them, if there is time."""
    model = build_transformer(make_spec(layers=3, router=hmoe.TopP(p=1.0)), seed=1)
    with opened(model, tmp_path, 10**6) as offload:
        trainer = Trainer(model, offload)
        trainer.train(1, 1)
        trainer.read(4, 1)
        trainer.update()
        cache, before = offload.cache, offload.cache.counts.misses
        end = time.monotonic() + 20
        while cache._stale or any(
            (layer, own) not in cache for layer in range(3) for own in range(len(WIDTHS))
        ):
            assert time.monotonic() < end
            time.sleep(0.001)
        trainer.read(4, 1)
        assert cache.counts.misses == before


def test_a_closed_offload_computes_no_more(tmp_path: Path) -> None:
    model = build_transformer(make_spec(), seed=1)
    with opened(model, tmp_path):
        pass
    with pytest.raises(RuntimeError, match="were closed"):
        model(torch.arange(4)[None])


def test_gradients_are_multiplied_by_the_share_of_the_processes() -> None:
    """As where each process's loss is a mean over its own tokens."""
    moe = hmoe.MoE(8, (2, 3))
    storage = HostStorage([(5, 8)] * 12, torch.float32, pinned=False)
    layer = OffloadedLayer(ExpertHome(moe, 8, [2, 3], [0, 1], share=0.25), storage.matrices, CPU)
    layer.begin_backward()
    layer.write_gradients(1, [torch.full((3, 8), 2.0)] * 3, is_first=True)
    layer.attach_gradients()
    assert moe.w_up.grad is not None
    assert moe.w_up.grad.tolist() == [[0.0] * 8] * 2 + [[0.5] * 8] * 3
