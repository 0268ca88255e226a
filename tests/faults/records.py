"""What a campaign writes down, a line a case, and the table that its parts add up to."""

import ast
import functools
import hashlib
import inspect
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.faults.campaign import RIGHT, SKIPPED, WRONG, Case, FaultTest, Outcome

ROOT = Path(__file__).parents[2]
OUTCOMES = "outcomes.jsonl"
_HARNESS = ("campaign.py", "conftest.py")


@dataclass(frozen=True)
class Place:
    """Where and on what cases were run: the day, the commit, the machine."""

    date: str
    commit: str
    machine: str


@dataclass(frozen=True)
class Row:
    """A case as it is written down."""

    test: str
    number: int
    seed: int
    result: str
    units: int
    detail: str
    seconds: float
    source: str
    planned: int
    time: float
    place: Place


@dataclass(frozen=True)
class Total:
    """What is known of a test: what it is, numbers of cases by result, units tried in cases that were right, and where.

    Attributes:
        longest: seconds that the longest case took.
    """

    test: str
    fault: str
    promise: str
    unit: str
    drawn: bool
    planned: int
    cases: int
    right: int
    wrong: int
    skipped: int
    units: int
    longest: float
    seeds: list[int]
    dates: list[str]
    commits: list[str]


def describe_place() -> Place:
    """Return the day, commit and machine of now."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{platform.machine()}, torch {torch.__version__}"
    return Place(datetime.now(UTC).date().isoformat(), commit or "unknown", machine)


@functools.cache
def hash_package() -> str:
    """Return the SHA-256 of the package's source."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "src").rglob("*")):
        if file.is_file() and file.suffix in {".py", ".yaml", ".cpp", ".h", ".json"}:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def hash_source(test: FaultTest) -> str:
    """Return what identifies the code of a case: it counts as done while package, test and helpers are the same."""
    file = inspect.getsourcefile(test.run)
    assert file is not None
    digest = hashlib.sha256(hash_package().encode())
    for each in sorted(list_imported_tests(Path(file))):
        digest.update(each.read_bytes())
    return digest.hexdigest()[:16]


def list_imported_tests(file: Path, known: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """Return a file of tests and all others that it imports, but for the campaign's own, which plant nothing."""
    known |= {file}
    for node in ast.walk(ast.parse(file.read_text())):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if not isinstance(node, ast.ImportFrom) or not module.startswith("tests"):
            continue
        for name in (module, *(f"{module}.{alias.name}" for alias in node.names)):
            part = ROOT / f"{name.replace('.', '/')}.py"
            if part.exists() and part not in known and part.name not in _HARNESS:
                known = list_imported_tests(part, known)
    return known


def append_row(
    folder: Path, test: FaultTest, case: Case, outcome: Outcome, planned: int, place: Place
) -> Row:
    """Write a case down, so that the next part goes on behind it.

    Args:
        folder: of the campaign.
        test, case, outcome: what was tried, and what came of it.
        planned: number of cases that the test has.
        place: where it ran.
    """
    row = Row(
        test.name, case.number, case.seed, outcome.result, outcome.units, outcome.detail, round(outcome.seconds, 2),
        hash_source(test), planned, time.time(), place,
    )  # fmt: skip
    with (folder / OUTCOMES).open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")
    return row


def read_outcome_rows(files: Iterable[Path], tests: Sequence[FaultTest]) -> list[Row]:
    """Return what campaigns wrote down, each case once.

    Of a case that was run more than once the newest counts, but where its code was the same, one that was wrong once
    stays wrong. An enumeration is the same with every seed, and only that of the newest code counts.
    """
    rows, enumerations = [], {test.name for test in tests if not test.drawn}
    for file in files:
        for line in file.read_text().splitlines() if file.exists() else []:
            tree: dict[str, Any] = json.loads(line)
            rows.append(Row(**(tree | {"place": Place(**tree["place"])})))
    kept: dict[tuple[str, int, int], Row] = {}
    newest = {row.test: row.source for row in sorted(rows, key=lambda row: row.time)}
    for row in sorted(rows, key=lambda row: row.time):
        is_enumerated = row.test in enumerations
        if is_enumerated and row.source != newest[row.test]:
            continue  # its points were others
        key = row.test, 0 if is_enumerated else row.seed, row.number
        before = kept.get(key)
        stays = before is not None and (before.result == WRONG or row.result == SKIPPED)
        if before is None or not stays or before.source != row.source:
            kept[key] = row
    return list(kept.values())


def add_up(rows: Sequence[Row], tests: Sequence[FaultTest]) -> list[Total]:
    """Return the totals of all tests, those without a case included."""
    return [_add_up_test([row for row in rows if row.test == test.name], test) for test in tests]


def _add_up_test(rows: Sequence[Row], test: FaultTest) -> Total:
    right, wrong, skipped = (sum(row.result == result for row in rows) for result in (RIGHT, WRONG, SKIPPED))
    return Total(
        test.name, test.fault, test.promise, test.unit, test.drawn,
        planned=sum({row.seed if test.drawn else 0: row.planned for row in rows}.values()),
        cases=len(rows),
        right=right,
        wrong=wrong,
        skipped=skipped,
        units=sum(row.units for row in rows if row.result == RIGHT),
        longest=max((row.seconds for row in rows), default=0.0),
        seeds=sorted({row.seed for row in rows}),
        dates=sorted({row.place.date for row in rows}),
        commits=list(dict.fromkeys(row.place.commit for row in rows)),
    )  # fmt: skip


def write_totals(file: Path, totals: Sequence[Total]) -> None:
    """Write totals as the page on reliability reads them."""
    file.write_text(json.dumps([asdict(total) for total in totals], indent=1) + "\n")


def describe_totals(totals: Sequence[Total]) -> str:
    """Return the table as a terminal shows it."""
    lines = [f"{'test':12} {'planned':>7} {'right':>6} {'wrong':>6} {'skipped':>7}  tried"]
    for total in totals:
        counts = f"{total.planned:7} {total.right:6} {total.wrong:6} {total.skipped:7}"
        lines.append(f"{total.test:12} {counts}  {total.units:,} {total.unit}")
    return "\n".join(lines)
