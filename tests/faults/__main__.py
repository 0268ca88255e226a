"""Runs the fault campaign, a part at a time; the parts add up in one table.

    python -m tests.faults [--minutes 20] [--seed 0] [--only R1a R4:17] [--out build/faults]

Tests take turns, so that each has had its share whenever the time is over; the next call goes on where this one ended.
`--only R4:17` repeats one case. Exits 1 if any case was wrong.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.faults.campaign import (
    RIGHT,
    SKIPPED,
    WRONG,
    Case,
    FaultTest,
    NotPossibleError,
    Outcome,
    describe_case,
    list_living_children,
    own_orphans,
    prepare_test,
    run_case,
)
from tests.faults.catalogue import TESTS
from tests.faults.records import (
    OUTCOMES,
    add_up,
    append_row,
    describe_place,
    describe_totals,
    hash_source,
    read_outcome_rows,
    write_totals,
)


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no further case begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="tests, or cases as R4:17")
    parser.add_argument("--out", type=Path, default=Path("build/faults"))
    parser.add_argument(
        "--record", type=Path, help="write what all parts add up to into this file, and run nothing"
    )
    return parser.parse_args(words)


def select_tests(only: Sequence[str]) -> list[tuple[FaultTest, list[int] | None]]:
    """Return the tests that are asked for by name, each with the cases that are, None: all of them."""
    names = {test.name: test for test in TESTS}
    unknown = [name for name in (word.partition(":")[0] for word in only) if name not in names]
    if unknown:
        raise SystemExit(f"no test {unknown[0]}; there are {', '.join(names)}")
    if not only:
        return [(test, None) for test in TESTS]
    selected: dict[str, list[int] | None] = {}
    for word in only:
        name, _, number = word.partition(":")
        selected[name] = [*(selected.get(name) or []), int(number)] if number else None
    return [(names[name], numbers) for name, numbers in selected.items()]


class Part:
    """A part of the campaign: cases by turns until the time is over.

    Attributes:
        wrong: number of cases of this part that were.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._place, self.wrong = options, describe_place(), 0
        self._planned: dict[str, int] = {}
        self._left: dict[str, list[int]] = {}
        self._done = self._list_done()

    def _list_done(self) -> set[tuple[str, int, int]]:
        """Return test, number and how many were planned of the cases that need not be run again."""
        sources = {test.name: hash_source(test) for test in TESTS}
        enumerations = {test.name for test in TESTS if not test.drawn}
        return {
            (row.test, row.number, row.planned)
            for row in read_outcome_rows([self._options.out / OUTCOMES], TESTS)
            if row.result != SKIPPED and row.source == sources.get(row.test)
            if row.seed == self._options.seed or row.test in enumerations
        }  # fmt: skip

    def run(self, selected: Sequence[tuple[FaultTest, list[int] | None]]) -> int:
        """Run cases of the selected tests; return how many tests did not have their first turn."""
        end = time.monotonic() + 60 * self._options.minutes
        waiting = sorted(selected, key=lambda pair: pair[0].slow)
        while time.monotonic() < end:
            # A test is prepared when its first turn comes, so that a short part does not only prepare.
            if waiting:
                test, numbers = waiting.pop(0)
                self._prepare(test, numbers)
                self._run_next([test])
            elif not self._run_next([test for test, _ in selected]):
                break
        return len(waiting)

    def _prepare(self, test: FaultTest, numbers: list[int] | None) -> None:
        """Make what the cases of a test need, and line them up, but for those that were run before."""
        try:
            cases = prepare_test(test, self._locate_base(test))
        except (NotPossibleError, AssertionError) as error:
            result = WRONG if isinstance(error, AssertionError) else SKIPPED
            self._end_case(test, self._make_case(test, 0), Outcome(result, 0, str(error), 0.0))
            return
        left = [number for number in range(cases) if (test.name, number, cases) not in self._done]
        self._left[test.name] = left if numbers is None else numbers
        self._planned[test.name] = cases

    def _run_next(self, tests: Sequence[FaultTest]) -> bool:
        """Run a case of the test that is behind the most; return whether any was left."""
        behind = [test for test in tests if self._left.get(test.name)]
        if not behind:
            return False
        test = max(behind, key=lambda test: len(self._left[test.name]) / max(self._planned[test.name], 1))
        case = self._make_case(test, self._left[test.name].pop(0))
        self._end_case(test, case, run_case(test, case))
        return True

    def _make_case(self, test: FaultTest, number: int) -> Case:
        folder = self._options.out / "cases" / f"{test.name}-{self._options.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        return Case(number, self._options.seed, folder.absolute(), self._locate_base(test))

    def _end_case(self, test: FaultTest, case: Case, outcome: Outcome) -> None:
        self.wrong += outcome.result == WRONG
        planned = self._planned.get(test.name, test.cases or 1)
        append_row(self._options.out, test, case, outcome, planned, self._place)
        if self._options.owns_orphans:  # what a case that was killed left behind
            list_living_children(0.0)
        if outcome.result != RIGHT:
            print(describe_case(test, case, outcome), flush=True)

    def _locate_base(self, test: FaultTest) -> Path:
        base: Path = self._options.out / "base" / test.name
        return base.absolute()

    def count_left(self) -> int:
        """Return how many cases are left of the tests that had a turn."""
        return sum(map(len, self._left.values()))


def run_part(options: argparse.Namespace) -> int:
    """Run cases until the time is over, print what all parts add up to; return how many were wrong in this one."""
    selected, part = select_tests(options.only), Part(options)
    not_begun = part.run(selected)
    totals = add_up(read_outcome_rows([options.out / OUTCOMES], TESTS), [test for test, _ in selected])
    print(describe_totals(totals))
    others = f", {not_begun} tests not begun" if not_begun else ""
    print(f"seed {options.seed}: {part.wrong} wrong in this part; {part.count_left()} cases left{others}")
    return part.wrong


def main() -> None:
    options = read_arguments()
    if options.record is not None:
        files = sorted(options.out.glob(f"**/{OUTCOMES}"))
        rows = [row for row in read_outcome_rows(files, TESTS) if not row.place.commit.endswith("-dirty")]
        write_totals(options.record, add_up(rows, TESTS))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    own_orphans()
    options.owns_orphans = True
    os.environ.setdefault("XDG_CACHE_HOME", str((options.out / "cache").absolute()))
    torch.set_num_threads(1)
    sys.exit(run_part(options) > 0)


if __name__ == "__main__":
    main()
