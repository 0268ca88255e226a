"""What `hmoe plan` tells of several processes and of machines that are not here."""

import json
import re
from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.config.hardware import read_hardware
from hmoe.config.memory import Device, count_memory
from hmoe.config.plan import make_plan


def plan(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command_line(["plan", *words]) == 0
    return capsys.readouterr().out


def test_one_process_without_a_machine_is_planned_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = json.loads(plan("tiny", "--json", capsys=capsys))
    assert not {"processes", "sent_bytes", "step"} & numbers.keys()


@pytest.mark.parametrize(
    ("preset", "size", "machine", "overrides", "fits"),
    [
        ("hmoe-0.4b-topp", 8, "a800", [], True),
        ("hmoe-3b-topp", 8, "a800", [], True),
        ("hmoe-16b-topp", 32, "h800", [], False),
        ("hmoe-16b-topp", 32, "h800", ["parallel.shard=zero3"], True),
    ],
)
def test_the_papers_settings_are_planned_whole(
    preset: str, size: int, machine: str, overrides: list[str], fits: bool
) -> None:
    config = recipes.read_recipe(preset, overrides)[1]
    assert config.parallel.sharding == ("zero3" if overrides else "zero2")
    numbers = make_plan(config, None, size, read_hardware(machine))
    assert numbers["micro_batches"] % size == 0
    assert numbers["micro_batches"] * numbers["micro_batch_tokens"] == 640 * 4096
    assert numbers["fits"] is fits
    step = numbers["step"]
    assert step["seconds"] == pytest.approx(sum(step["by_part_seconds"].values()))
    assert 0.1 < step["mfu"] < 0.6
    assert step["tokens_per_second"] * step["seconds"] == pytest.approx(640 * 4096)
    assert step["budget_seconds"] == pytest.approx(numbers["budget_tokens"] / step["tokens_per_second"])


def test_zero3_keeps_no_whole_gradients() -> None:
    sizes = {}
    for shard in ("zero2", "zero3"):
        overrides = [
            f"parallel.shard={shard}",
            "data.micro_batches=64",
            "train.activation_checkpointing=true",
        ]
        sizes[shard] = count_memory(recipes.read_recipe("hmoe-16b-topp", overrides)[1], "cuda", 32)
    assert sizes["zero3"] < 60e9
    assert sizes["zero2"] > 140e9


def test_a_person_reads_memory_traffic_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan("tiny", "--processes", "4", "--hardware", "h100", "parallel.shard=zero3", capsys=capsys)
    for line in (
        "memory of each process",
        "communication of each process and step",
        "weights, to others",
        "step, simulated",
        "tokens per second",
        "left out",
        "that of h100, of each process",
        "the context and libraries' workspaces",
    ):
        assert line in text
    shared = plan("tiny", "--processes", "2", capsys=capsys)
    assert "this machine's, shared by 2 processes" in shared
    assert re.search(r"^  in all +[\d.]+ MB, (at|in) the ", shared, re.MULTILINE)
    assert "the process itself, about half a GB" in shared
    assert re.search(
        r"^  checkpoint copies +6\.3 MB of the host, while one is written$", shared, re.MULTILINE
    )
    assert "step, simulated" not in shared


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--processes", "3"], "3 processes cannot share that evenly"),
        (
            ["tiny", "--hardware", "a10"],
            "--hardware a10: must be a .yaml file or one of a100, a800, h100, h800",
        ),
        (["tiny", "--hardware", "h100", "--memory", "80"], "--memory has no effect with --hardware"),
        (["runs/x", "--control", "--processes", "2"], "--processes has no effect with --control"),
        (["runs/x", "--control", "--hardware", "h100"], "--hardware has no effect with --control"),
        (["tiny", "--processes", "0"], "--processes"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_machine_of_ones_own_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hmoe.config import machines

    text = (Path(machines.__file__).parent / "h100.yaml").read_text()
    slow, fast = tmp_path / "slow.yaml", tmp_path / "fast.yaml"
    slow.write_text(text.replace("memory_bytes: 85000000000", "memory_bytes: 1000"))
    fast.write_text(text.replace("experts_flops: 3.3e14", "experts_flops: 3.3e16"))
    too_small = json.loads(plan("tiny", "--hardware", str(slow), "--json", capsys=capsys))
    assert not too_small["fits"]
    seconds = [
        json.loads(plan("hmoe-3b-topk", "--hardware", name, "--json", capsys=capsys))["step"]["seconds"]
        for name in ("h100", str(fast))
    ]
    assert seconds[1] < 0.6 * seconds[0]


def test_processes_of_one_machine_share_its_memory() -> None:
    config = recipes.read_recipe("tiny", ["data.micro_batches=4"])[1]
    one, two = (make_plan(config, Device("cpu", 10**9), size) for size in (1, 2))
    assert two["memory_by_part_bytes"]["optimizer"] == pytest.approx(
        one["memory_by_part_bytes"]["optimizer"] / 2, rel=0.01
    )
    parameters = sum(two["parameters_by_part"].values())
    assert two["checkpoint_bytes"] == 3 * 4 * parameters / 2
    assert "checkpoint_bytes" not in one
    assert (one["memory_moment"] is None, make_plan(config, Device("cuda", 10**9))["memory_moment"]) == (
        False,
        None,
    )
