"""`hmoe train` by several processes: the run of one, whoever goes on with it, and every verb opens it."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hmoe.cli.main import run_command_line
from tests.conftest import tiny
from tests.train.helpers import call, one_thread, rows, run

ROOT = Path(__file__).parents[2]
EXACT = ["data.micro_batches=4", "parallel.exact=true", "train.inspect_every=3", "train.sample_every=3"]


def launch(size: int, folder: Path, *overrides: str) -> "list[subprocess.Popen[str]]":
    """Start so many processes that train the run of `helpers.run`, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = ["train.steps=6", "train.save_every=2", "train.eval_every=3", "train.sample_every=0"]
    words = [
        sys.executable,
        "-m",
        "hmoe",
        "train",
        "tiny",
        "--run",
        str(folder),
        *tiny("tiny"),
        *small,
        *overrides,
    ]
    shared = one_thread() | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=shared | {"RANK": str(rank)}
        )
        for rank in range(size)
    ]


def end(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_together(size: int, folder: Path, *overrides: str) -> "list[subprocess.CompletedProcess[str]]":
    """What came of so many processes that trained together."""
    return [end(process) for process in launch(size, folder, *overrides)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two processes and of one."""
    folder = tmp_path_factory.mktemp("shared")
    first, second = start_together(2, folder / "two", *EXACT, "parallel.shard=zero3")
    assert (first.returncode, first.stderr) == (0, "")
    assert "processes: 2, zero3, exact" in first.stdout
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    run(folder / "one", *EXACT)
    return folder


def test_two_processes_leave_what_one_leaves(trained: Path) -> None:
    one, two = trained / "one", trained / "two"
    assert (two / "metrics.jsonl").read_bytes() == (one / "metrics.jsonl").read_bytes()
    assert {path.name: path.read_bytes() for path in (two / "probe").iterdir()} == {
        path.name: path.read_bytes() for path in (one / "probe").iterdir()
    }
    states = [(folder / "checkpoints" / "step-00000006" / "state.json").read_bytes() for folder in (one, two)]
    assert states[0] == states[1]
    files = {path.name for path in (two / "checkpoints" / "step-00000006").iterdir()}
    assert {"model.rank-0-of-2.safetensors", "optimizer.rank-1-of-2.safetensors"} < files
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


def test_every_verb_opens_the_run_of_two(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, text = {}, trained / "text.txt"
    text.write_text("It was a small house by the river.")
    for name in ("one", "two"):
        folder = str(trained / name)
        for words in (
            ["eval", folder, "--text", str(text), "--json"],
            ["inspect", folder, "It was", "--json"],
            ["generate", folder, "It was", "--max-tokens", "4"],
            ["export", folder, str(trained / f"hf-{name}")],
        ):
            assert run_command_line(words) == 0, words
        shown[name] = (
            capsys.readouterr().out.replace(f"hf-{name}", "hf").replace(folder, "RUN").replace(name, "RUN")
        )
    weights = [load_file(trained / f"hf-{name}" / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    assert shown["one"] == shown["two"]
    assert run_command_line(["compare", str(trained / "two")]) == 0


def test_one_process_goes_on_with_the_run_of_two_and_writes_what_it_always_does(trained: Path) -> None:
    for name in ("one", "two"):
        run(trained / name, *EXACT, "train.steps=8")
    folders = [trained / name / "checkpoints" / "step-00000008" for name in ("one", "two")]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    assert "model.safetensors" in files[0]


def test_a_number_that_does_not_divide_is_one_line_that_names_what_would(tmp_path: Path) -> None:
    results = start_together(3, tmp_path / "r", "data.micro_batches=4")
    assert [result.returncode for result in results] == [2, 2, 2]
    assert "".join(result.stdout for result in results) == ""
    assert "".join(result.stderr for result in results) == (
        "hmoe: error: data.micro_batches = 4: 3 processes cannot share that evenly; start 1, 2 or 4\n"
    )
    assert not (tmp_path / "r").exists()


def test_who_is_left_when_another_dies_ends_with_a_line(tmp_path: Path) -> None:
    processes = launch(2, tmp_path / "r", *EXACT, "train.steps=100000", "train.save_every=5")
    deadline = time.monotonic() + 60
    while not (tmp_path / "r" / "checkpoints" / "step-00000005").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].kill()
    left = end(processes[0])
    processes[1].communicate()
    assert left.returncode == 6
    assert left.stderr.startswith("hmoe: error: another process of this run no longer answers (")
    assert left.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["ddp", "zero2", "zero3"])
def test_without_exact_mode_losses_are_those_of_one_process_but_for_rounding(
    shard: str, tmp_path: Path
) -> None:
    fast = [
        "data.micro_batches=4",
        "train.steps=50",
        "train.save_every=50",
        "train.eval_every=0",
        "parallel.threads=1",
    ]
    sizes = [
        "model.dim=64",
        "model.vocab=307",
        "model.moe.widths=[61, 127, 31, 47, 89, 53]",
    ]  # 0.2M parameters
    results = start_together(2, tmp_path / "two", *fast, *sizes, f"parallel.shard={shard}")
    assert results[0].returncode == 0, results[0].stderr
    run(tmp_path / "one", *fast, *sizes)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == 50
    assert max(abs(a - b) / a for a, b in zip(*losses, strict=True)) < 1e-6
    assert losses[0] != losses[1]


def campaign(mode: str, folder: Path, amount: int) -> str:
    result = call(sys.executable, "-m", "tests.train.chain_driver", mode, str(folder), str(amount), cwd=ROOT)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    print(result.stdout)
    return result.stdout


def test_chains_of_numbers_of_processes_end_with_the_same_bits(tmp_path: Path) -> None:
    assert campaign("chains", tmp_path, 2).endswith("2 of 2 chains ended with the bits of the unbroken run\n")


@pytest.mark.slow
def test_thirty_chains_with_kills_end_with_the_same_bits(tmp_path: Path) -> None:
    assert campaign("chains", tmp_path, 30).endswith(
        "30 of 30 chains ended with the bits of the unbroken run\n"
    )


@pytest.mark.slow
def test_killed_at_every_file_system_call_of_either_process(tmp_path: Path) -> None:
    assert campaign("points", tmp_path, 1).endswith(" 0 runs with other bits or leftovers\n")
