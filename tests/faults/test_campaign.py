"""The campaign itself: it tells right from wrong, crashes, hangs and what is left behind, and its parts add up."""

import argparse
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import __main__ as command
from tests.faults.campaign import RIGHT, SKIPPED, WRONG, Case, FaultTest, NotPossibleError, check, run_case
from tests.faults.catalogue import TESTS
from tests.faults.records import OUTCOMES, ROOT, add_up, list_imported_tests, read_outcome_rows, write_totals


def make_test(run: Any, name: str = "T", **changes: Any) -> FaultTest:
    return FaultTest(name, "a fault", "a promise", "units", run, **{"cases": 4, "seconds": 20.0, **changes})


def make_case(tmp_path: Path, number: int = 0, seed: int = 0) -> Case:
    return Case(number, seed, tmp_path / f"case{number}", tmp_path)


def crash(_: Case) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def leave_process(_: Case) -> int:
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    return 1


def leave_orphan(_: Case) -> int:
    subprocess.run(["sh", "-c", "sleep 60 &"], check=True)
    return 1


def fail(_: Case) -> int:
    check(False, "bits differ")
    return 1


def skip(_: Case) -> int:
    raise NotPossibleError("needs root")


@pytest.mark.parametrize(
    ("run", "result", "told"),
    [
        (lambda case: 3, RIGHT, ""),
        (fail, WRONG, "AssertionError: bits differ"),
        (lambda case: 1 // 0, WRONG, "ZeroDivisionError"),
        (crash, WRONG, "its process ended with -9"),
        (leave_process, WRONG, "leaves processes: ['sleep 60 ']"),
        (leave_orphan, WRONG, "leaves processes: ['sleep 60 ']"),
        (skip, SKIPPED, "needs root"),
    ],
)
def test_what_came_of_a_case(
    tmp_path: Path, run: Any, result: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.campaign._LEAVING_SECONDS", 0.3)
    case = make_case(tmp_path)
    outcome = run_case(make_test(run), case)
    assert (outcome.result, outcome.units) == (result, 3 if result == RIGHT else outcome.units)
    assert told in outcome.detail
    assert case.folder.exists() == (result == WRONG)
    if result == WRONG and run is fail:
        assert "bits differ" in (case.folder / "output.txt").read_text()


def test_a_case_that_hangs_is_killed_and_wrong(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    hang = make_test(lambda case: (begun.write_text(str(os.getpid())), time.sleep(600))[0], seconds=0.5)
    outcome = run_case(hang, make_case(tmp_path))
    assert (outcome.result, outcome.detail) == (WRONG, "does not end within 0 s")
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_draws_are_a_function_of_seed_and_number(tmp_path: Path) -> None:
    draws = {(n, s): make_case(tmp_path, n, s).draw().random() for n in range(3) for s in range(3)}
    assert len(set(draws.values())) == 9
    assert draws[1, 2] == make_case(tmp_path, 1, 2).draw().random()


def run_part(out: Path, *, seed: int = 0, minutes: float = 1.0, only: tuple[str, ...] = ()) -> int:
    out.mkdir(exist_ok=True)
    return command.run_part(
        argparse.Namespace(out=out, seed=seed, minutes=minutes, only=list(only), owns_orphans=False)
    )


def read_totals(out: Path) -> dict[str, Any]:
    return {
        total.test: total
        for total in add_up(read_outcome_rows([out / OUTCOMES], command.TESTS), command.TESTS)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign of three tests: one that is right, one that is wrong in its last case, one not possible here."""

    def prepare(base: Path) -> int:
        (base / "shared").write_text("x")
        return 3

    def be_wrong_at_two(case: Case) -> int:
        check((case.base / "shared").read_text() == "x", "not prepared")
        check(case.number != 2, "two")
        return 10

    def refuse(_: Path) -> int:
        raise NotPossibleError("no such machine")

    tests = (
        make_test(lambda case: 1, "A"),
        make_test(be_wrong_at_two, "B", cases=None, prepare=prepare),
        make_test(fail, "C", prepare=refuse),
    )
    monkeypatch.setattr(command, "TESTS", tests)


@pytest.mark.usefixtures("small")
def test_parts_go_on_where_one_ended_and_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_part(tmp_path / "out", minutes=0.0) == 0
    assert "3 tests not begun" in capsys.readouterr().out
    assert run_part(tmp_path / "out", only=("A:1",)) == 0
    assert run_part(tmp_path / "out") == 1
    told = capsys.readouterr().out
    assert "B:2 wrong: AssertionError: two; see " in told
    assert "make faults ONLY=B:2 SEED=0" in told
    assert "C:0 skipped: no such machine" in told
    totals = read_totals(tmp_path / "out")
    counts = {name: (t.cases, t.right, t.wrong, t.skipped, t.units) for name, t in totals.items()}
    assert counts == {"A": (4, 4, 0, 0, 4), "B": (3, 2, 1, 0, 20), "C": (1, 0, 0, 1, 0)}
    size = (tmp_path / "out" / OUTCOMES).stat().st_size
    assert run_part(tmp_path / "out", only=("A", "B")) == 0  # nothing is tried twice
    assert totals["B"].planned == 3
    assert (tmp_path / "out" / OUTCOMES).stat().st_size == size
    assert run_part(tmp_path / "out", seed=1, only=("A",)) == 0
    assert read_totals(tmp_path / "out")["A"].seeds == [0, 1]
    assert read_totals(tmp_path / "out")["A"].cases == 8


@pytest.mark.usefixtures("small")
def test_a_case_that_is_asked_for_runs_again_and_its_newest_outcome_counts(tmp_path: Path) -> None:
    for _ in range(2):
        assert run_part(tmp_path / "out", only=("B:2", "B:0")) == 1
    assert len((tmp_path / "out" / OUTCOMES).read_text().splitlines()) == 4
    assert read_totals(tmp_path / "out")["B"].cases == 2
    write_totals(
        tmp_path / "totals.json",
        add_up(read_outcome_rows([tmp_path / "out" / OUTCOMES], command.TESTS), command.TESTS),
    )
    second = json.loads((tmp_path / "totals.json").read_text())[1]
    assert (second["test"], second["wrong"], second["units"]) == ("B", 1, 10)
    with pytest.raises(SystemExit, match="no test D; there are A, B, C"):
        run_part(tmp_path / "out", only=("D:1",))


@pytest.mark.usefixtures("small")
def test_a_test_whose_code_changed_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_part(tmp_path / "out", only=("A",)) == 0
    monkeypatch.setattr(command, "hash_source", lambda test: "another")
    assert run_part(tmp_path / "out", only=("A",)) == 0
    assert len((tmp_path / "out" / OUTCOMES).read_text().splitlines()) == 8


def test_a_case_that_was_wrong_stays_wrong_while_its_code_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_wrong_at_first(case: Case) -> int:
        fresh = not (tmp_path / "tried").exists()
        (tmp_path / "tried").touch()
        check(not fresh, "wrong now and then")
        return 1

    monkeypatch.setattr(command, "TESTS", (make_test(be_wrong_at_first, "A", cases=1),))
    assert run_part(tmp_path / "out") == 1
    assert run_part(tmp_path / "out", only=("A:0",)) == 0
    assert read_totals(tmp_path / "out")["A"].wrong == 1
    monkeypatch.setattr("tests.faults.records.hash_source", lambda test: "mended")
    assert run_part(tmp_path / "out", only=("A:0",)) == 0
    assert read_totals(tmp_path / "out")["A"].wrong == 0


def test_an_enumeration_counts_once_whatever_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TESTS", (make_test(lambda case: 1, "A", drawn=False),))
    assert run_part(tmp_path / "out") == run_part(tmp_path / "out", seed=1) == 0
    total = read_totals(tmp_path / "out")["A"]
    assert (total.planned, total.cases, total.units, total.seeds) == (4, 4, 4, [0])


def test_what_could_not_be_planted_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TESTS", (make_test(skip, "A", cases=1),))
    for _ in range(2):
        assert run_part(tmp_path / "out") == 0
    assert len((tmp_path / "out" / OUTCOMES).read_text().splitlines()) == 2


def test_code_that_a_test_imports_is_part_of_it() -> None:
    files = {path.name for path in list_imported_tests(ROOT / "tests" / "faults" / "kills.py")}
    assert files >= {
        "kills.py",
        "works.py",
        "kill_driver.py",
        "chain_driver.py",
        "fault_driver.py",
        "helpers.py",
    }
    assert "campaign.py" not in files


def test_tests_have_names_of_their_own() -> None:
    names = [test.name for test in TESTS]
    assert len(set(names)) == len(names)
    assert not [test.name for test in TESTS if test.cases is None and test.prepare is None]
