"""`hmoe train` by several processes: the run of one, whoever goes on with it, and every verb opens it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.cli.main import run_command_line
from hmoe.train.stop import StopRequest
from tests.conftest import tiny
from tests.train.fault_driver import CASES
from tests.train.helpers import call, command, one_thread, rows, run

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


def test_a_port_that_is_taken_is_a_line_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        numbers = {"RANK": "0", "WORLD_SIZE": "2"}
        result = subprocess.run(
            command(tmp_path / "r"),
            capture_output=True,
            text=True,
            check=False,
            env=one_thread() | place | numbers,
        )
    assert result.returncode == 6
    assert re.search(r"hmoe: error: process 0 of 2 cannot meet the others \(.*EADDRINUSE", result.stderr)


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
    assert re.match(r"hmoe: error: process 1 of 2 no longer answers, after step \d+ \(", left.stderr)
    assert left.stderr.count("\n") == 1


def start_launcher(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """Start `hmoe train --processes 2` on the run of `helpers.run`."""
    words = [*command(folder, *EXACT, *overrides), "--processes", "2"]
    # A group of its own, as a shell gives it: who has none is not stopped by a terminal.
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread(), process_group=0
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def find_process(folder: Path, rank: int) -> int:
    """The id of a process that trains a run, by its number."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((path / name).read_bytes() for name in ("cmdline", "environ"))
            if str(folder).encode() in words and f"\0RANK={rank}\0".encode() in b"\0" + variables:
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("no such process")


def test_a_launched_run_that_loses_a_process_ends_with_the_bits_of_the_unbroken_one(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    launcher = start_launcher(folder, "parallel.shard=zero3")
    wait_for((folder / "checkpoints" / "step-00000002").is_dir)
    os.kill(find_process(folder, 1), signal.SIGKILL)
    result = end(launcher)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(
        r"hmoe: process 1 of 2 was killed by SIGKILL .*, after step \d; its log is .*/rank-1.log; "
        r"all start again \(1 of 3\)\n",
        result.stderr,
    )
    assert "resuming from step" in result.stdout
    assert rows(folder) == rows(trained / "two")[:6]
    files = [path / "checkpoints" / "step-00000006" / "MANIFEST.json" for path in (folder, trained / "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [(folder / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    assert logs[0].count("process 0 of 2\n") == 2
    assert result.stdout.splitlines()[-1] in logs[0]
    assert logs[1].count("process 1 of 2\n") == 2


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_signals_to_the_launcher_save_and_go_on_pause_or_end(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    launcher = start_launcher(folder, "train.steps=100000", "train.save_every=100000")
    wait_for(lambda: (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size > 0)
    launcher.send_signal(signal.SIGUSR1)
    wait_for(lambda: len(list_checkpoint_steps(folder)) == 1)
    first = list_checkpoint_steps(folder)[0]
    assert launcher.poll() is None
    everybody = [launcher.pid, find_process(folder, 0), find_process(folder, 1)]
    launcher.send_signal(signal.SIGTSTP)  # Ctrl-Z
    wait_for(lambda: all(map(is_stopped, everybody)))
    num_steps = len(rows(folder))
    launcher.send_signal(signal.SIGCONT)
    wait_for(lambda: len(rows(folder)) > num_steps)
    for pid in everybody:  # as a service manager sends it; the launcher passes its own on
        os.kill(pid, signal.SIGTERM)
    result = end(launcher)
    assert (result.returncode, result.stderr) == (0, "")
    assert "stopped by SIGTERM, the same command continues" in result.stdout
    assert list_checkpoint_steps(folder)[0] > first


def test_a_second_signal_ends_all_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    folder, temporary = tmp_path / "r", tmp_path / "tmp"
    temporary.mkdir()
    words = [*command(folder, *EXACT, "train.steps=100000", "train.save_every=100000"), "--processes", "2"]
    launcher = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_thread() | {"TMPDIR": str(temporary)},
    )
    wait_for(lambda: len(list(temporary.glob("hmoe-*"))) == 1 and (folder / "metrics.jsonl").is_file())
    everybody = [find_process(folder, 0), find_process(folder, 1)]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)  # so that the first signal does not end them
    for _ in range(2):
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert end(launcher).returncode == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in everybody)
    assert list(temporary.glob("hmoe-*")) == []


def test_a_signal_lets_one_process_save_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    monkeypatch.setattr("hmoe.train.loop.STOP", stop)
    stop.wants_checkpoint = True
    run(tmp_path / "r", "train.save_every=4", "train.keep=9")
    assert list_checkpoint_steps(tmp_path / "r") == [6, 4, 1]
    assert not stop.wants_checkpoint


def test_what_one_can_say_is_said_before_any_process_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_words = ["train", "tiny", "--run", str(tmp_path / "r"), *tiny("tiny")]
    for words, said in (
        ([*run_words, "--processes", "3"], "data.micro_batches = 2: 3 processes cannot share that evenly"),
        ([*run_words, "--restarts", "1"], "--restarts has no effect without --processes"),
        (["inspect", str(tmp_path), "It was", "--processes", "2"], "--processes has no effect with TEXT"),
        (["train", "no-such", "--processes", "2"], "no-such"),
    ):
        assert run_command_line(words) == 2, words
        assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run_command_line(["eval", str(tmp_path), "--processes", "2"]) == 2
    assert (
        "--processes 2: another launcher, which sets RANK and WORLD_SIZE, has started 4"
        in capsys.readouterr().err
    )
    assert run_command_line([*run_words, "--processes", "4", "--restarts", "1"]) == 2
    assert "--restarts has no effect on processes that another launcher started" in capsys.readouterr().err


def test_two_processes_evaluate_as_one(trained: Path) -> None:
    text = trained / "texts.txt"
    text.write_text("It was a small house by the river.\n\nShe was not at home.\n")
    words = [sys.executable, "-m", "hmoe", "eval", str(trained / "two"), "--text", str(text), "--json"]
    results = [call(*words, "--processes", size) for size in ("1", "2")]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    assert json.loads(results[1].stdout) == json.loads(results[0].stdout)


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


@pytest.mark.slow
def test_every_fault_of_either_process_ends_in_the_same_bits_or_a_named_error(tmp_path: Path) -> None:
    result = call(sys.executable, "-m", "tests.train.fault_driver", str(tmp_path), cwd=ROOT)
    print(result.stdout)
    assert result.stdout.endswith(f"{len(CASES)} right, 0 wrong, 0 skipped\n"), result.stdout[-3000:]
