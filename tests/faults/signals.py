"""R6: signals at any time, also while Python imports: what was trained is saved, and the same command goes on."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from hmoe.checkpoint.manifest import list_checkpoint_steps
from tests.conftest import tiny
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.works import measure_folder, write_text
from tests.train.helpers import digests, one_thread, rows

LONG = ["train.steps=40", "train.save_every=10", "train.eval_every=8", "train.sample_every=0"]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
INTERRUPTED = 130


def begin(words: list[str], out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "hmoe", *words]
    return subprocess.Popen(command, env=one_thread(), stdout=out.open("ab"), stderr=subprocess.STDOUT)


def make_words(folder: Path) -> list[str]:
    return ["train", "tiny", "--run", str(folder), *tiny("tiny"), *LONG]


def prepare_runs(base: Path) -> None:
    start = time.monotonic()
    check(begin(make_words(base / "run"), base / "out.txt").wait() == 0, "an undisturbed run fails")
    (base / "expected.json").write_text(json.dumps([digests(base / "run"), time.monotonic() - start]))


def interrupt_run(case: Case) -> int:
    """Send one signal, or two, or SIGKILL after one, at a random time; then call the same command again."""
    rng = case.draw()
    expected, seconds = json.loads((case.base / "expected.json").read_text())
    sent, folder, out = SIGNALS[case.number % len(SIGNALS)], case.folder / "run", case.folder / "out.txt"
    process = begin(make_words(folder), out)
    time.sleep(rng.uniform(0.0, 0.95 * seconds))
    counts = int(process.poll() is None)  # else it had ended by then
    twice = send_signals(process, sent, rng)
    code = process.wait()
    check_code(code, sent, twice, folder, out.read_text())
    check(begin(make_words(folder), out).wait() == 0, "cannot go on")
    check(digests(folder) == expected, f"{sent.name}: ends with other bits")
    check("Traceback" not in out.read_text(), f"{sent.name}: prints a traceback")
    return counts


def send_signals(process: "subprocess.Popen[bytes]", sent: signal.Signals, rng: random.Random) -> bool:
    """Return whether a second signal followed, which ends a run at once."""
    process.send_signal(sent)
    more = rng.random()
    if more < 0.5:
        return False
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(sent if more < 0.8 else signal.SIGKILL)
    return True


def check_code(code: int, sent: signal.Signals, twice: bool, folder: Path, told: str) -> None:
    """Check how a run ended: saved at its last step, as the second signal says, or before it listened to any."""
    begun = (folder / ".lock").exists()
    if code == 0:
        if begun:
            last = rows(folder)[-1]["step"] if rows(folder) else 0
            saved = max(list_checkpoint_steps(folder), default=0)
            check(saved == last, f"{sent.name}: step {last} was taken, {saved} saved: {told[-300:]}")
        return
    allowed = {-sent, 128 + sent, -signal.SIGKILL} if twice or sent == signal.SIGHUP else set()
    if not begun:  # not a file was written: the signal came before Python ran a line of ours
        allowed |= {-sent}
    check(code in allowed, f"{sent.name}: ends with {code}: {told[-300:]}")


def prepare_text(base: Path) -> None:
    write_text(base / "text.jsonl", 400)
    start = time.monotonic()
    check(begin(prepare_words(base, base / "data"), base / "out.txt").wait() == 0, "an undisturbed one fails")
    (base / "expected.json").write_text(json.dumps([measure_folder(base / "data"), time.monotonic() - start]))


def prepare_words(base: Path, folder: Path) -> list[str]:
    return ["data", "prepare", str(base / "text.jsonl"), "--tokenizer", "bpe:300", "--out", str(folder)]


def interrupt_preparation(case: Case) -> int:
    """Interrupt `hmoe data prepare`, then call it again."""
    rng = case.draw()
    expected, seconds = json.loads((case.base / "expected.json").read_text())
    sent, folder, out = (
        (signal.SIGINT, signal.SIGTERM)[case.number % 2],
        case.folder / "data",
        case.folder / "out.txt",
    )
    process = begin(prepare_words(case.base, folder), out)
    time.sleep(rng.uniform(0.0, 0.95 * seconds))
    counts = int(process.poll() is None)
    process.send_signal(sent)
    code, began = process.wait(), folder.exists()
    check(code in (0, INTERRUPTED, -sent) if sent == signal.SIGTERM or not began else code in (0, INTERRUPTED),
          f"{sent.name}: ends with {code}")  # fmt: skip
    check(begin(prepare_words(case.base, folder), out).wait() == 0, "cannot go on")
    check(measure_folder(folder) == expected, f"{sent.name}: ends with other bytes")
    check("Traceback" not in out.read_text(), f"{sent.name}: prints a traceback")
    return counts


TESTS = (
    FaultTest(
        "R6", "SIGTERM, SIGINT, SIGUSR1, SIGHUP at any time, also while Python imports; twice, or followed by SIGKILL",
        "SIGTERM or SIGINT once it listens: exit code 0, saved at the last step; called again, the same bits",
        "signals", interrupt_run, 100, prepare_runs, 180.0, slow=True,
    ),
    FaultTest(
        "R6.data", "SIGINT, SIGTERM at any time of hmoe data prepare",
        "a second call leaves the bytes of an undisturbed one", "signals", interrupt_preparation, 12, prepare_text,
    ),
)  # fmt: skip
