"""Runs whose experts lie on disk: the files of a run without, byte for byte, however they are stopped and continued."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe.config import recipes
from hmoe.config.memory import Device
from hmoe.config.processes import check_processes
from hmoe.errors import CheckpointError, ConfigError
from hmoe.parallel.expert_storage import FileStorage
from hmoe.train.step import train_step
from tests.train.helpers import call, command, digests, run

DISK = "parallel.offload=disk"
UNEQUAL = "model.moe.widths=[4,120,8,16,30,12,9,5]"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [
        ["data.micro_batches=2"],
        [UNEQUAL, "train.sample_every=4", "train.inspect_every=3"],
        ["optim.clip=null", "train.activation_checkpointing=true"],
    ],
    ids=["micro-batches", "unequal", "recomputed"],
)
def test_files_are_those_of_a_run_without(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "memory", *options)
    capsys.readouterr()
    run(tmp_path / "disk", *options, DISK)
    told = capsys.readouterr().out
    assert digests(tmp_path / "disk") == digests(tmp_path / "memory")
    assert "of weights" in told
    assert " uses were at hand in time" in told
    assert "a step read" in told
    names = {path.name for path in (tmp_path / "disk").iterdir()}
    assert names == {path.name for path in (tmp_path / "memory").iterdir()}


def test_a_run_goes_on_with_experts_in_memory_or_on_disk(tmp_path: Path) -> None:
    options = [UNEQUAL, "train.eval_every=2"]  # at the end of each part, too
    run(tmp_path / "whole", *options)
    run(tmp_path / "turns", *options, DISK, "train.steps=2")
    run(tmp_path / "turns", *options, "train.steps=4")
    run(
        tmp_path / "turns",
        *options,
        DISK,
        "parallel.offload_bytes=1000000",
        f"parallel.offload_folder={tmp_path}",
    )
    assert digests(tmp_path / "turns") == digests(tmp_path / "whole")


PLACED = ("parallel.experts=expert_parallel", "train.eval_every=2", "data.micro_batches=4")


def test_processes_that_place_experts_keep_theirs_on_disk(tmp_path: Path) -> None:
    """One process has the widest alone."""

    def train(folder: str, *options: str) -> dict[str, str]:
        result = call(*command(tmp_path / folder, UNEQUAL, *PLACED, *options))
        assert result.returncode == 0, result.stderr
        return digests(tmp_path / folder)

    expected = train("memory", "--processes", "2")
    train("disk", "--processes", "2", DISK, "train.steps=2")
    assert train("disk", "--processes", "2", DISK) == expected
    for folder, options in (("memory", []), ("disk", [DISK])):  # what two wrote goes on in one
        run(tmp_path / folder, UNEQUAL, *PLACED, "train.steps=8", *options)
    assert digests(tmp_path / "disk") == digests(tmp_path / "memory")


def test_processes_whose_experts_are_not_their_own_are_refused() -> None:
    def check(*options: str) -> None:
        check_processes(recipes.read_recipe("tiny", [DISK, "data.micro_batches=4", *options])[1], 2)

    check(PLACED[0])
    with pytest.raises(ConfigError, match=r"parallel\.experts = null: .* must be expert_parallel"):
        check()
    with pytest.raises(ConfigError, match=r"parallel\.expert_ranks = 1: .* must be all of them"):
        check(PLACED[0], "parallel.expert_ranks=1")
    with pytest.raises(ConfigError, match=r"parallel\.replace_every = 3: .* must be 0"):
        check(PLACED[0], "parallel.replace_every=3")


def test_a_step_that_is_not_finite_leaves_experts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run without: the third step is skipped, the next one goes on from the same weights."""

    def spoil(model: Any, optimizer: Any, parts: Any, config: Any, step: int, *rest: Any) -> Any:
        weight, kept = model.norm.weight.data, model.norm.weight.data.clone()
        if step == 2:
            weight.fill_(float("nan"))
        record = train_step(model, optimizer, parts, config, step, *rest)
        if step == 2:
            assert not record.applied
            weight.copy_(kept)
        return record

    monkeypatch.setattr("hmoe.train.loop.train_step", spoil)
    run(tmp_path / "memory", "train.eval_every=0")
    run(tmp_path / "disk", "train.eval_every=0", DISK)
    assert digests(tmp_path / "disk") == digests(tmp_path / "memory")


def test_bfloat16_is_computed_by_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoe.kernels.native.can_use_library", lambda x_TD: False)
    run(tmp_path / "memory", "train.precision=bfloat16")
    run(tmp_path / "disk", "train.precision=bfloat16", DISK)
    assert digests(tmp_path / "disk") == digests(tmp_path / "memory")


def test_a_full_disk_ends_the_run_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(CheckpointError, match="cannot hold the experts: No space left on device"):
        run(tmp_path / "run", DISK)


def test_a_disk_that_fails_ends_the_run_with_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    real, published = FileStorage.transfer, tmp_path / "run" / "checkpoints" / "step-00000002"

    def transfer(self: FileStorage, *arguments: Any, **options: Any) -> None:
        if published.exists():
            raise CheckpointError("Input/output error")
        real(self, *arguments, **options)

    monkeypatch.setattr(FileStorage, "transfer", transfer)
    with pytest.raises(CheckpointError, match="Input/output error"):
        run(tmp_path / "run", DISK)
    assert published.is_dir()
    monkeypatch.setattr(FileStorage, "transfer", real)
    run(tmp_path / "run", DISK)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["parallel.offload=disc"], "parallel.offload = 'disc': must be 'none', 'disk' or 'host'"),
        ([DISK, "parallel.exact=true"], "parallel.offload = disk: with parallel.exact = true must be none"),
        ([DISK, "train.compile=true"], "train.compile = true: with parallel.offload = disk must be false"),
        ([DISK, "train.precision=float64"], "train.precision = float64: .*nearest is float32"),
        (
            [DISK, "parallel.offload_bytes=3071"],
            "offload_bytes = 3071: must hold the two widest .*nearest is 6144",
        ),
        (["parallel.offload_bytes=4"], "offload_bytes has no effect with offload = none"),
        (
            ["parallel.offload=host", "parallel.offload_folder=/tmp"],
            "offload_folder has no effect with offload = host",
        ),
        (
            [DISK, "parallel.offload_folder=here"],
            "offload_folder = here: must be an absolute path; nearest is /.*/here",
        ),
    ],
)
def test_what_a_recipe_cannot_ask_for_is_told(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        recipes.read_recipe("tiny", ["model.dim=32", "model.heads=2", "model.moe.widths=[8,8,8,8]", *options])


def test_a_dense_model_has_nothing_to_offload() -> None:
    with pytest.raises(
        ConfigError, match=r"parallel.offload = disk: the model has no experts; nearest is none"
    ):
        recipes.read_recipe("tiny-dense", [DISK])


def test_what_a_machine_cannot_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parallel.offload = host: .* nearest is disk"):
        run(tmp_path / "host", "parallel.offload=host", "train.device=cpu")
    with pytest.raises(ConfigError, match=r"offload_folder = /nowhere: must be a folder"):
        run(tmp_path / "nowhere", DISK, "parallel.offload_folder=/nowhere")


def test_a_run_that_does_not_fit_names_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoe.train.device_fit.read_host", lambda: Device("cpu", 1000))
    with pytest.raises(ConfigError, match=r"see `hmoe plan`, then .* or set parallel\.offload$"):
        run(tmp_path / "memory")
    with pytest.raises(ConfigError, match=r"or lower parallel\.offload_bytes$"):
        run(tmp_path / "disk", DISK)


def test_a_folder_in_memory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    run(tmp_path / "run", DISK, "parallel.offload_folder=/dev/shm", "train.steps=1")
    assert "/dev/shm: lies in memory" in capsys.readouterr().out
