"""A training step on a device waits for it once: no value is asked for, and nothing small is copied there.

The device is `meta`, whose tensors have no values to ask for, and on which everything takes the way it takes on a GPU.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hmoe import kernels
from hmoe.config import recipes
from hmoe.data.batches import cut_batch
from hmoe.model.transformer import build_transformer, set_check_finite
from hmoe.train import step as training
from tests.conftest import tiny

META = torch.device("meta")
WAITS = (
    "_local_scalar_dense", "nonzero", "is_nonzero", "bincount", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "equal", "item",
)  # fmt: skip


class Watch(TorchDispatchMode):
    """Collects what would wait for the device, and counts what would be launched on it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensors = func.overloadpacket.__name__, [a for a in args if isinstance(a, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        given = {tensor.device.type for tensor in tensors}
        if name in WAITS or (name in ("_to_copy", "copy_") and given | _devices(result) == {"cpu", "meta"}):
            self.waits.append(name)
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        if any(i is not None and i.dtype == torch.bool for i in indices):
            self.waits.append(f"{name} by booleans")
        self.launches += (
            "meta" in given | _devices(result) and not func.is_view and name not in ("empty", "detach")
        )
        return result


class WatchCalls(TorchFunctionMode):
    """Collects what makes a tensor of numbers that the host holds, and what asks a tensor for its own."""

    NAMES = (
        "tensor",
        "as_tensor",
        "new_tensor",
        "item",
        "tolist",
        "cpu",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
    )

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = getattr(func, "__name__", ""), func(*args, **(kwargs or {}))
        if name in self.NAMES and "meta" in _devices([*args, result]) and result is not args[0]:
            self.waits.append(name)
        return result


def _devices(result: Any) -> set[str]:
    parts = result if isinstance(result, tuple | list) else [result]
    return {part.device.type for part in parts if isinstance(part, torch.Tensor)}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Meta tensors have no numbers: every reading gives ones, and is counted. The kernels are those of a GPU."""
    counts: list[int] = []

    def read_numbers(tensors: Sequence[torch.Tensor]) -> list[list[float]]:
        counts.append(1)
        assert {tensor.device.type for tensor in tensors} == {"meta"}, (
            "one copy reads them all: they must lie together"
        )
        return [[1.0] * tensor.numel() for tensor in tensors]

    monkeypatch.setattr(training, "read_numbers", read_numbers)
    monkeypatch.setattr(kernels, "resolve_backend", lambda name, layer: "triton")
    monkeypatch.setattr(kernels, "check_counts", lambda layer, name: None)  # of Triton's, on the device
    return counts


def run(preset: str, *overrides: str) -> Watch:
    """The second step: the first one copies what never changes."""
    config = recipes.read_recipe(preset, [*tiny(preset), "data.micro_batches=2", *overrides])[1]
    model = build_transformer(config.model, 0, device="meta")
    model.activation_checkpointing = bool(config.train.activation_checkpointing)
    set_check_finite(model, False)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, foreach=True
    )  # fused AdamW does not know the device
    tokens = torch.zeros(4, 32, dtype=torch.int64, device="meta")
    for step in range(2):
        with Watch() as watch, WatchCalls() as calls:
            record = training.train_step(model, optimizer, cut_batch(tokens, tokens, 2), config, step)
        assert record.applied
    watch.waits += calls.waits
    return watch


PRESETS = (
    "tiny", "tiny-topp", "tiny-dense", "tiny-deepseek", "tiny-gshard", "tiny-rectify", "tiny-moepp",
    "tiny-expert-choice",
)  # fmt: skip


# Recomputed blocks and the router's kernels do not know of each other: every preset has both ways of each.
@pytest.mark.parametrize(
    ("preset", "again", "fused"),
    [
        *((preset, again, again == "false") for preset in PRESETS for again in ("false", "true")),
        ("tiny", "false", False),
        ("tiny", "true", True),
    ],
)
def test_a_step_waits_for_the_device_once(
    preset: str, again: str, fused: bool, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoe.model.router.fuses_router", lambda logits_TE: fused)
    watch = run(preset, f"train.activation_checkpointing={again}")
    assert watch.waits == []
    assert len(reads) == 2, "one reading in each of two steps"


def test_what_waits_is_seen() -> None:
    """The watch above finds what it looks for."""
    x = torch.zeros(4, device="meta")
    with Watch() as watch, WatchCalls() as calls:
        x.new_tensor([1.0, 2.0])
        torch.tensor([1, 2], device="meta")
        torch.zeros(3).to("meta")
        x[torch.zeros(4, dtype=torch.bool, device="meta")] = 0
    assert (len(watch.waits), calls.waits) == (2, ["new_tensor", "tensor"])
