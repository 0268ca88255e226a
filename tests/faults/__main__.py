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
from collections.abc import Iterator, Sequence
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


class Turns:
    """Which case is next: of the test that is behind the most."""

    def __init__(self, options: argparse.Namespace, done: set[tuple[str, int, int]]) -> None:
        self._options, self._done = options, done
        self._left: dict[str, list[int]] = {}
        self.planned: dict[str, int] = {}

    def prepare(self, test: FaultTest, numbers: list[int] | None) -> None:
        """Make what the cases of a test need, and line them up, but for those that were run before."""
        cases = prepare_test(test, (self._options.out / "base" / test.name).absolute())
        left = [number for number in range(cases) if (test.name, number, cases) not in self._done]
        self._left[test.name] = left if numbers is None else numbers
        self.planned[test.name] = cases

    def take(self, tests: Sequence[FaultTest]) -> Iterator[tuple[FaultTest, int]]:
        """Yield cases until none is left."""
        while True:
            behind = [test for test in tests if self._left.get(test.name)]
            if not behind:
                return
            test = max(behind, key=lambda test: len(self._left[test.name]) / max(self.planned[test.name], 1))
            yield test, self._left[test.name].pop(0)

    def count(self) -> int:
        return sum(map(len, self._left.values()))


def run_part(options: argparse.Namespace) -> int:
    """Run cases until the time is over; return how many were wrong."""
    place, end = describe_place(), time.monotonic() + 60 * options.minutes
    rows = read_outcome_rows([options.out / OUTCOMES], TESTS)
    sources = {test.name: hash_source(test) for test in TESTS}
    enumerations = {test.name for test in TESTS if not test.drawn}
    done = {
        (row.test, row.number, row.planned)
        for row in rows
        if row.result != SKIPPED
        and row.source == sources.get(row.test)
        and (row.seed == options.seed or row.test in enumerations)
    }
    selected, turns, wrong = select_tests(options.only), Turns(options, done), 0
    tests = [test for test, _ in selected]

    def end_case(test: FaultTest, case: Case, outcome: Outcome) -> None:
        nonlocal wrong
        wrong += outcome.result == WRONG
        append_row(options.out, test, case, outcome, turns.planned.get(test.name, test.cases or 1), place)
        if options.owns_orphans:  # what a case that was killed left behind
            list_living_children(0.0)
        if outcome.result != RIGHT:
            print(describe_case(test, case, outcome), flush=True)

    def make_case(test: FaultTest, number: int) -> Case:
        folder = options.out / "cases" / f"{test.name}-{options.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        return Case(number, options.seed, folder.absolute(), (options.out / "base" / test.name).absolute())

    waiting = sorted(selected, key=lambda pair: pair[0].slow)
    while time.monotonic() < end:
        # A test is prepared when its first turn comes, so that a short part does not only prepare.
        if waiting:
            test, numbers = waiting.pop(0)
            try:
                turns.prepare(test, numbers)
            except (NotPossibleError, AssertionError) as error:
                result = WRONG if isinstance(error, AssertionError) else SKIPPED
                end_case(test, make_case(test, 0), Outcome(result, 0, str(error), 0.0))
                continue
            ready = [test]
        else:
            ready = tests
        pair = next(turns.take(ready), None)
        if pair is None:
            if not waiting:
                break
            continue
        case = make_case(*pair)
        end_case(pair[0], case, run_case(pair[0], case))
    left = turns.count()
    print(describe_totals(add_up(read_outcome_rows([options.out / OUTCOMES], TESTS), tests)))
    unprepared = f", {len(waiting)} tests not begun" if waiting else ""
    print(f"seed {options.seed}: {wrong} wrong in this part; {left} cases left{unprepared}")
    return wrong


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
