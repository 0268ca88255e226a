"""A small model, and a loop as somebody would write it, with experts in memory or elsewhere."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import hmoe
from hmoe.model.transformer import Transformer
from hmoe.parallel.offload import ExpertOffload
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
