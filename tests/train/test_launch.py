"""What a launcher says of a process, and which numbers of processes a run can have."""

from typing import Any

import numpy as np
import pytest

from hmoe.config import recipes
from hmoe.config.memory import Device, choose_unset, estimate_memory_by_part
from hmoe.config.processes import check_processes, describe_processes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.parallel.process_numbers import ProcessNumbers, read_process_numbers
from hmoe.train.feed import OwnParts

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((None, None, None, None), ProcessNumbers(0, 1, 0, 1)),
        ((None, "4", None, None), ProcessNumbers(0, 1, 0, 1)),
        (("3", "4", "1", "2"), ProcessNumbers(3, 4, 1, 2)),
        (("1", "4", None, None), ProcessNumbers(1, 4, 1, 4)),
        (("4", "4", None, None), None),
        (("-1", "4", None, None), None),
        (("0", "many", None, None), None),
        (("0", "2", "1", "4"), None),
    ],
)
def test_the_environment_tells_which_process_this_is(
    values: tuple[str | None, ...], expected: ProcessNumbers | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    if expected is not None:
        assert read_process_numbers() == expected
        return
    with pytest.raises(ConfigError, match=r"the environment says: RANK = .*start it by torchrun"):
        read_process_numbers()


def load(*overrides: str) -> RunConfig:
    return recipes.read_recipe("tiny", overrides)[1]


@pytest.mark.parametrize(
    ("size", "overrides", "said"),
    [
        (
            3,
            ["data.micro_batches=4"],
            "data.micro_batches = 4: 3 processes cannot share that evenly; start 1, 2 or 4",
        ),
        (
            5,
            ["data.micro_batches=6", "data.batch_tokens=3072", "data.sequence_length=128"],
            "start 1, 2, 3 or 6",
        ),
        (2, ["data.micro_batches=1"], "there is nothing to share among 2 processes; start 1"),
        (3, [], r"data.batch_tokens / data.sequence_length = 32: .* start 1, 2, 4, 8, 16 or 32"),
        (2, ["parallel.shard=none"], "parallel.shard = none: is for one process, .* nearest is ddp"),
        (2, ["parallel.replicas=4"], "parallel.replicas = 4: must divide the 2 processes"),
    ],
)
def test_a_number_of_processes_that_cannot_share_a_run_is_one_line(
    size: int, overrides: list[str], said: str
) -> None:
    config = load(*overrides)
    check_processes(config, 1)
    with pytest.raises(ConfigError, match=said) as caught:
        check_processes(config, size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["parallel.exact=true", "parallel.shard=ddp"],
            "parallel: shard = ddp: with exact = true must be one of zero2",
        ),
        (["parallel.exact=true", "parallel.experts=ddp"], "parallel: experts = ddp: with exact = true"),
        (["parallel.exact=true", "parallel.replicas=2"], "parallel: replicas = 2: with exact = true"),
        (["parallel.shard=none", "parallel.experts=zero3"], "experts has no effect with shard = none"),
        (["parallel.shard=zero1"], "parallel.shard = 'zero1'"),
        (["parallel.replicas=0"], "parallel.replicas = 0"),
        (["parallel.threads=true"], "parallel.threads = True"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(*overrides)


def test_a_run_says_how_it_is_shared() -> None:
    parallel = load("parallel.experts=zero3", "parallel.replicas=2").parallel
    assert describe_processes(parallel, 1) == ""
    assert describe_processes(parallel, 4).startswith("processes: 4, zero2, experts zero3, 2 replicas, fast")
    exact = load("parallel.exact=true").parallel
    assert describe_processes(exact, 1).startswith("processes: 1, exact")
    assert exact.num_threads == 1
    assert parallel.num_threads is None


@pytest.mark.parametrize("device", [Device("cpu", 10**12), Device("cuda", 10**12), Device("cuda", 2 * 10**7)])
@pytest.mark.parametrize("size", [2, 4, 32])
def test_parts_that_are_chosen_can_be_shared_evenly(device: Device, size: int) -> None:
    chosen = choose_unset(load(), device, size)
    assert chosen.data.num_micro_batches % size == 0
    check_processes(chosen, size)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_process_needs_memory_for_its_part(kind: str) -> None:
    def count(shard: str, size: int, *more: str) -> dict[str, int]:
        # Little else: a CPU's step is told at its largest moment, when gradients are there in full.
        small = ["data.batch_tokens=512", "data.sequence_length=16", "model.layers=6", *more]
        config = load(f"parallel.shard={shard}", "data.micro_batches=4", *small)
        return estimate_memory_by_part(config, kind, size)

    whole = count("ddp", 1)
    assert count("zero3", 1) == count("zero2", 1, "parallel.replicas=2", "parallel.experts=zero3") == whole
    assert count("ddp", 4)["optimizer"] == whole["optimizer"]
    assert count("ddp", 4)["parameters"] > count("zero2", 4)["parameters"]  # the engine gathers its own, too
    assert count("zero2", 4)["optimizer"] == pytest.approx(whole["optimizer"] / 4, rel=1e-4)
    assert count("zero2", 4)["parameters"] > count("zero3", 4)["parameters"] > whole["parameters"] / 4
    assert count("zero2", 2)["gradients"] >= whole["gradients"]  # of two parts, until they are added up
    assert count("zero2", 4)["gradients"] < whole["gradients"]
    assert count("zero3", 2)["gradients"] < whole["gradients"]


class Recorder:
    """Batches whose reads are written down."""

    def __init__(self) -> None:
        self.config = load("data.micro_batches=6", "data.batch_tokens=768", "data.sequence_length=128").data
        self.read: list[int] = []

    def parts(self, step: int, indices: Any) -> list[Any]:
        self.read += indices
        return [np.full((1, 2), index + 10 * step) for index in indices]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_each_part_is_read_by_one_process(size: int) -> None:
    reads = []
    for rank in range(size):
        recorder = Recorder()
        OwnParts(recorder, rank, size).parts(3)  # type: ignore[arg-type]
        assert recorder.read == list(range(rank, 6, size))
        reads += recorder.read
    assert sorted(reads) == list(range(6))
