"""The launcher, with processes that need no torch: what it starts again, whom it names, and that nobody is left."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hmoe.errors import DistributedError
from hmoe.parallel.launcher import LaunchOptions, launch_processes
from hmoe.parallel.process_numbers import CANNOT_MEET

BEGIN = """
import os, signal, sys, time
from pathlib import Path
from hmoe.parallel.heartbeat import HEARTBEAT
HEARTBEAT.start()
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
folder = Path(sys.argv[1])
start = Path(os.environ["HMOE_STORE"]).name
def is_first():
    return start == "store-0"
def wait():
    time.sleep(30)
"""


def make_command(folder: Path, body: str) -> list[str]:
    return [sys.executable, "-c", BEGIN + textwrap.dedent(body), str(folder)]


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def launch(folder: Path, body: str, **options: object) -> tuple[int, Said]:
    """Run two processes of a body; return the exit code and what was said. None of them is left."""
    said = Said()
    chosen = LaunchOptions(**{"num_processes": 2, "logs": folder / "logs", "say": said, **options})  # type: ignore[arg-type]
    try:
        return launch_processes(make_command(folder, body), chosen), said
    finally:
        assert find_processes(folder) == []


def find_processes(folder: Path) -> list[str]:
    """Processes whose command line names a folder."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and str(folder).encode() in (path / "cmdline").read_bytes():
                found.append(path.name)
        except OSError:
            continue
    return [pid for pid in found if int(pid) != os.getpid()]


def test_every_process_knows_its_number_and_has_a_log(tmp_path: Path) -> None:
    body = """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
        (folder / f"seen-{rank}").write_text(" ".join(os.environ[name] for name in names))
        print(f"process {rank} writes", flush=True)
        print(f"process {rank} errs", file=sys.stderr)
    """
    for _ in range(2):  # logs are appended to
        assert launch(tmp_path, body) == (0, [])
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in (0, 1)] == [
        f"0 2 0 2 {threads}",
        f"1 2 1 2 {threads}",
    ]
    log = (tmp_path / "logs" / "rank-1.log").read_text()
    assert re.fullmatch(
        r"(--- \d{4}-\d\d-\d\d [\d:]{8}: process 1 of 2\nprocess 1 writes\nprocess 1 errs\n){2}", log
    )


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed by SIGKILL \(as if memory had run out\)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("sys.exit(1)", "failed, after step 7: it ended with 1"),
        ("raise ValueError('planted')", "failed, after step 7: ValueError: planted"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", r"shows no sign of life for \d+ s"),
    ],
)
def test_a_process_that_is_lost_is_named_with_its_step_and_all_start_again(
    end: str, named: str, tmp_path: Path
) -> None:
    body = f"""
        HEARTBEAT.reach(7)
        if is_first() and rank == 1:
            {end}
        if is_first():
            wait()
        (folder / f"ended-{{rank}}").touch()
    """
    short = {"silent_seconds": 2.0} if "STOP" in end else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.parallel.launcher._LEAVING_SECONDS", 0.2)
        patch.setattr("hmoe.parallel.launcher._SIGN_SECONDS", 1.8)
        code, said = launch(tmp_path, body, restarts=1, **short)
    assert code == 0
    assert len(said) == 1
    assert re.match(rf"process 1 of 2 {named}", said[0]), said
    assert "after step 7" in said[0]
    assert said[0].endswith(f"its log is {tmp_path}/logs/rank-1.log; all start again (1 of 1)")
    assert (tmp_path / "ended-0").exists()
    assert (tmp_path / "ended-1").exists()


def test_one_that_lives_but_does_not_end_is_said_to_hang(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.parallel.launcher._LEAVING_SECONDS", 0.5)
        with pytest.raises(
            DistributedError,
            match=r"process 1 of 2 hangs: it did not end when .*, before the first step; its",
        ):
            launch(tmp_path, "wait() if rank == 1 else sys.exit(6)")


def test_who_cannot_meet_the_others_is_named_and_not_who_waits_for_it(tmp_path: Path) -> None:
    body = f"""
        if rank == 0:
            wait()
        print("hmoe: error: process 1 of 2 {CANNOT_MEET} (no space left)", file=sys.stderr)
        sys.exit(6)
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.parallel.launcher._LEAVING_SECONDS", 0.5)
        with pytest.raises(
            DistributedError, match=r"^process 1 of 2 .* \(no space left\), before the first step"
        ):
            launch(tmp_path, body)


@pytest.mark.parametrize("peer", ["wait()", "time.sleep(0.3); print('hmoe: error: no answer'); sys.exit(6)"])
def test_one_that_aborts_is_named_and_not_who_waits_for_it(peer: str, tmp_path: Path) -> None:
    body = f"""
        if rank == 1:
            os.abort()
        {peer}
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.parallel.launcher._LEAVING_SECONDS", 0.5)
        with pytest.raises(
            DistributedError, match=r"^process 1 of 2 was killed by SIGABRT, before the first step"
        ):
            launch(tmp_path, body)


def test_one_that_nccl_aborts_waited_for_the_one_that_hangs(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            print("[rank1]: Watchdog caught collective operation timeout", flush=True)
            os.abort()
        wait()
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.parallel.launcher._LEAVING_SECONDS", 0.5)
        with pytest.raises(DistributedError, match=r"^process 0 of 2 hangs"):
            launch(tmp_path, body)


def test_a_code_without_a_line_is_no_error_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(
        DistributedError, match="process 1 of 2 failed, before the first step: it ended with 3; its log"
    ):
        launch(tmp_path, "sys.exit(3 * rank)")


def test_signals_to_all_wait_until_each_listens(tmp_path: Path) -> None:
    late = BEGIN.replace("HEARTBEAT.start()\n", "") + textwrap.dedent("""
        (folder / f"starts-{rank}").touch()
        time.sleep(0.5)
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        HEARTBEAT.start()
        while not stop:
            time.sleep(0.01)
    """)
    sent = False

    def send_to_all() -> Sequence[int]:
        nonlocal sent
        if not sent and len(list(tmp_path.glob("starts-*"))) == 2:
            sent = True
            for pid in find_processes(tmp_path):
                os.kill(int(pid), signal.SIGTERM)
        return ()

    command = [sys.executable, "-c", late, str(tmp_path)]
    assert launch_processes(command, LaunchOptions(2, tmp_path / "logs", print, send_to_all)) == 0


def test_one_that_does_not_end_after_another_has_ended_well_hangs(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.parallel.launcher._LEAVING_SECONDS", 0.5)
        with pytest.raises(
            DistributedError, match="process 1 of 2 hangs: it did not end when another had, before"
        ):
            launch(tmp_path, "wait() if rank == 1 else sys.exit(0)", silent_seconds=1.5)


def test_of_processes_that_do_not_reach_each_other_the_first_that_says_so_is_named(tmp_path: Path) -> None:
    body = """
        time.sleep(0.3 * (1 - rank))
        print(f"hmoe: error: process {rank} of 2 no longer answers", file=sys.stderr)
        sys.exit(6)
    """
    with pytest.raises(
        DistributedError, match="process 1 of 2 no longer answers, before the first step; its log"
    ):
        launch(tmp_path, body)


def test_what_is_lost_again_and_again_is_given_up_unless_there_is_progress(tmp_path: Path) -> None:
    count = "(folder / f'start-{rank}-{start}').touch(); sys.exit(1)"
    with pytest.raises(DistributedError, match=r"process [01] of 2 failed"):
        launch(tmp_path, count, restarts=2)
    assert len(list(tmp_path.glob("start-0-*"))) == 3
    steps = iter([1, 2, 3, 3, 3])
    with pytest.raises(DistributedError):
        launch(tmp_path / "b", "(folder.mkdir(exist_ok=True)," + count.replace("; ", "), ", 1), restarts=1,
               measure_progress=lambda: next(steps))  # fmt: skip
    assert len(list((tmp_path / "b").glob("start-0-*"))) == 3  # the first two made progress


@pytest.mark.parametrize("code", [2, 3, 4, 5])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_that_would_come_again_ends_all_with_its_code_and_is_told_once(
    code: int, rank: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"""
        if rank == {rank}:
            text = "hmoe: error: no such thing"
            print(text, file=sys.stderr)
            if rank == 0:
                open(os.environ["HMOE_LOG"], "a").write(text + "\\n")
        sys.exit({code})
    """
    ended, said = launch(tmp_path, body, restarts=3)
    assert ended == code
    assert [*said, *capfd.readouterr().err.splitlines()] == (
        ["hmoe: error: no such thing"] if rank == 0 else ["error: no such thing"]
    )


def test_signals_reach_all_processes_once_and_not_before_they_listen(tmp_path: Path) -> None:
    signals: list[Sequence[int]] = [[signal.SIGUSR1], [signal.SIGTERM]]
    body = """
        seen = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append("save"))
        signal.signal(signal.SIGTERM, lambda *_: seen.append("stop"))
        while "stop" not in seen:
            time.sleep(0.01)
        (folder / f"seen-{rank}").write_text(" ".join(seen))
    """
    # As the command line has it: handlers first, then the heartbeat.
    late = BEGIN.replace("HEARTBEAT.start()\n", "time.sleep(0.3)\n")
    script = late + textwrap.dedent(body).replace("while", "HEARTBEAT.start()\nwhile", 1)
    command = [sys.executable, "-c", script, str(tmp_path)]
    options = LaunchOptions(2, tmp_path / "logs", print, lambda: signals.pop(0) if signals else [])
    assert launch_processes(command, options) == 0
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in (0, 1)] == ["save stop", "save stop"]


def test_after_a_signal_to_stop_nothing_starts_again(tmp_path: Path) -> None:
    signals: list[Sequence[int]] = [[signal.SIGTERM]]
    with pytest.raises(DistributedError, match="was killed by SIGTERM"):
        launch(tmp_path, "wait()", restarts=5, take_signals=lambda: signals.pop() if signals else [])


def start_launcher(folder: Path, body: str) -> "subprocess.Popen[str]":
    """Start a launcher that gives processes up after two seconds and takes signals as the command line does."""
    script = textwrap.dedent(f"""
        import signal
        from pathlib import Path
        from hmoe.cli.processes import _make_signal_taker
        from hmoe.parallel.launcher import LaunchOptions, launch_processes
        from hmoe.train.stop import STOP
        STOP.install()
        options = LaunchOptions(2, Path({str(folder)!r}), print, _make_signal_taker(), silent_seconds=2.0)
        raise SystemExit(launch_processes({make_command(folder, body)!r}, options))
    """)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def wait_for_files(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 20
    while len(list(folder.glob(pattern))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)


COUNT = """
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    for count in range(10**6):
        (folder / f"counts-{rank}").write_text(str(count))
        time.sleep(0.02)
        if stop or (folder / "end").exists():
            break
"""


@pytest.mark.parametrize("end", ["goes on", "is told to stop"])
def test_a_pause_stops_all_and_loses_none(end: str, tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, COUNT)
    wait_for_files(tmp_path, "counts-*")
    for _ in range(2):
        launcher.send_signal(signal.SIGTSTP)
        time.sleep(3.0)  # longer than a process may be silent
        before = [path.read_text() for path in sorted(tmp_path.glob("counts-*"))]
        time.sleep(0.3)
        assert [path.read_text() for path in sorted(tmp_path.glob("counts-*"))] == before
        if end == "is told to stop":
            launcher.terminate()
        launcher.send_signal(signal.SIGCONT)
        if end == "is told to stop":
            break
    if end == "goes on":
        (tmp_path / "end").touch()
    out, _ = launcher.communicate(timeout=20)
    assert (launcher.returncode, out) == (0, "")
    assert find_processes(tmp_path) == []


@pytest.mark.parametrize("stopped", [False, True])
def test_no_process_outlives_a_launcher_that_is_killed(stopped: bool, tmp_path: Path) -> None:
    body = f"""
        (folder / f"runs-{{rank}}").touch()
        if {stopped}:
            os.kill(os.getpid(), signal.SIGSTOP)
        wait()
    """
    script = textwrap.dedent(f"""
        from pathlib import Path
        from hmoe.parallel.launcher import LaunchOptions, launch_processes
        launch_processes({make_command(tmp_path, body)!r}, LaunchOptions(2, Path({str(tmp_path)!r}), print))
    """)
    launcher = subprocess.Popen([sys.executable, "-c", script])
    wait_for_files(tmp_path, "runs-*")
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 20
    while find_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert find_processes(tmp_path) == []
    assert len(list(tmp_path.glob("runs-*"))) == 2
