"""Training with experts that lie elsewhere has the bits of training without: losses, norms, weights and moments."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hmoe
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer, build_transformer, set_backend, set_check_finite
from hmoe.parallel.offload import ExpertOffload
from hmoe.parallel.offloaded_model import build_offloaded_transformer
from hmoe.specs.experts import Hyper, ZeroExperts
from hmoe.specs.model import ModelSpec, MoESpec
from hmoe.specs.offload import count_fewest_bytes

WIDTHS = (5, 150, 17, 64, 33, 9)
CPU = torch.device("cpu")


def make_spec(dim: int = 24, layers: int = 2, widths: tuple[int, ...] = WIDTHS, **moe: Any) -> ModelSpec:
    router = moe.pop("router", hmoe.TopP(p=0.4))
    return ModelSpec(
        dim=dim, layers=layers, heads=1, vocab=64, moe=MoESpec(widths=widths, router=router, **moe)
    )


def count_least(spec: ModelSpec) -> int:
    assert spec.moe is not None
    return count_fewest_bytes([spec.moe.expert_widths] * len(spec.moe_layers), spec.dim, 4)


@contextlib.contextmanager
def opened(model: Transformer, folder: Path | None, most_bytes: int | None = None) -> Iterator[ExpertOffload]:
    offload = ExpertOffload(model, folder, CPU, most_bytes or count_least(model.config))
    try:
        yield offload
    finally:
        offload.close()


class Trainer:
    """A loop as somebody would write it; micro-batches of several lengths, the first of one token."""

    def __init__(
        self, model: Transformer, offload: ExpertOffload | None, clip: float | None = 0.1, bf16: bool = False
    ):
        self.model, self.offload, self.clip, self.bf16 = model, offload, clip, bf16
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-2, weight_decay=0.1, fused=True)
        self.generator = torch.Generator().manual_seed(3)
        self.told: list[float] = []

    def train(self, num_steps: int, num_parts: int) -> str:
        for _ in range(num_steps):
            for part in range(num_parts):
                self.read(16 if part else 1, num_parts)
            self.update()
        return self.digest()

    def read(self, length: int, num_parts: int) -> None:
        tokens, targets = (torch.randint(0, 64, (1, length), generator=self.generator) for _ in range(2))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss, routings = self.model(tokens, targets)
        ((loss + sum(hmoe.load_balance(r) for r in routings)) / num_parts).backward()
        self.told.append(loss.item())

    def update(self) -> None:
        with contextlib.nullcontext() if self.offload is None else self.offload.attach_gradients():
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.told.append(norm.item())

        def clip(gradient: torch.Tensor) -> None:
            holder = torch.nn.Parameter(torch.empty_like(gradient))
            holder.grad = gradient
            torch.nn.utils.clip_grads_with_norm_([holder], self.clip or 0.0, norm)

        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        if self.offload is not None:
            self.offload.step(self.optimizer, clip if self.clip is not None else None)
        self.optimizer.zero_grad(set_to_none=True)

    def digest(self) -> str:
        total = hashlib.sha256()
        with contextlib.nullcontext() if self.offload is None else self.offload.look_at_all():
            for name, parameter in self.model.named_parameters():
                state = self.optimizer.state.get(parameter, {})
                for key, value in ({"": parameter.detach()} | state).items():
                    total.update(f"{name} {key} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        return total.hexdigest()


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
