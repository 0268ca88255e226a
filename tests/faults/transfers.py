"""SIGKILL while an expert that lies on disk is fetched, its gradients are on their way back, or it is updated."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import Case, FaultTest, check
from tests.faults.kills import SAME, prepare_work, read_expected
from tests.faults.works import OFFLOADED, Attempt, Work, check_end, finish
from tests.train.kill_driver import KINDS, TRANSFERS, count_calls


def counting(file: Path, kind: str) -> Callable[[Path], None]:
    """Return the work's process, which writes down how many transfers of a kind it made."""

    def be(folder: Path) -> None:
        count = count_calls(0, TRANSFERS, kind)
        OFFLOADED.processes[0](folder)
        file.write_text(str(count()))

    return be


def dying(limit: int, kind: str) -> Callable[[Path], None]:
    """Return the work's process, which kills itself at the `limit`-th transfer of a kind."""

    def be(folder: Path) -> None:
        count_calls(limit, TRANSFERS, kind)
        OFFLOADED.processes[0](folder)

    return be


def prepare_transfers(base: Path) -> None:
    prepare_work(OFFLOADED, base)
    counts = {}
    for kind in KINDS:
        finish(Work([counting(base / "count", kind)], OFFLOADED.measure), base / kind)
        counts[kind] = int((base / "count").read_text())
        check(counts[kind] > 0, f"no transfer is of {kind}")
    (base / "counts.json").write_text(json.dumps(counts))


def kill_transfer(case: Case) -> int:
    kind, counts = KINDS[case.number % len(KINDS)], json.loads((case.base / "counts.json").read_text())
    limit, folder = case.draw().randint(1, counts[kind]), case.folder / "killed"
    attempt = Attempt(Work([dying(limit, kind)], OFFLOADED.measure), folder)
    attempt.go()
    codes = attempt.wait()
    check(codes == [-signal.SIGKILL], f"not killed at transfer {limit} of {kind}: {codes}")
    check_end(OFFLOADED, folder, read_expected(case.base)[0])
    return 1


TESTS = (
    FaultTest(
        "R1a.transfer", "an expert on disk that is being fetched, written back or updated", SAME, "SIGKILLs",
        kill_transfer, 60, prepare_transfers,
    ),
)  # fmt: skip
