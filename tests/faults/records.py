"""What a campaign writes down, a line a case, and the table that its parts add up to."""

import functools
import hashlib
import inspect
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.faults.campaign import RIGHT, SKIPPED, WRONG, Case, FaultTest, Outcome

ROOT = Path(__file__).parents[2]
OUTCOMES = "outcomes.jsonl"


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
    """Return what identifies the code that a case ran: a case counts as done while package and test are the same."""
    file = inspect.getsourcefile(test.run)
    assert file is not None
    return hashlib.sha256(hash_package().encode() + Path(file).read_bytes()).hexdigest()[:16]


def append_row(folder: Path, test: FaultTest, case: Case, outcome: Outcome, place: Place) -> Row:
    """Write a case down, so that the next part goes on behind it."""
    seconds, source = round(outcome.seconds, 2), hash_source(test)
    row = Row(
        test.name,
        case.number,
        case.seed,
        outcome.result,
        outcome.units,
        outcome.detail,
        seconds,
        source,
        place,
    )
    with (folder / OUTCOMES).open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")
    return row


def read_outcome_rows(files: Iterable[Path]) -> list[Row]:
    """Return what campaigns wrote down; of a case that was run more than once the newest counts."""
    rows: dict[tuple[str, int, int], Row] = {}
    for file in files:
        for line in file.read_text().splitlines() if file.exists() else []:
            tree: dict[str, Any] = json.loads(line)
            row = Row(**(tree | {"place": Place(**tree["place"])}))
            rows[row.test, row.seed, row.number] = row
    return list(rows.values())


def add_up(rows: Sequence[Row], tests: Sequence[FaultTest]) -> list[Total]:
    """Return the totals of all tests, those without a case included."""
    return [_add_up_test([row for row in rows if row.test == test.name], test) for test in tests]


def _add_up_test(rows: Sequence[Row], test: FaultTest) -> Total:
    right, wrong, skipped = (sum(row.result == result for row in rows) for result in (RIGHT, WRONG, SKIPPED))
    return Total(
        test.name, test.fault, test.promise, test.unit, len(rows), right, wrong, skipped,
        units=sum(row.units for row in rows if row.result == RIGHT),
        longest=max((row.seconds for row in rows), default=0.0),
        seeds=sorted({row.seed for row in rows}),
        dates=sorted({row.place.date for row in rows}),
        commits=list(dict.fromkeys(row.place.commit for row in rows)),
    )  # fmt: skip


def write_totals(file: Path, totals: Sequence[Total]) -> None:
    """Write totals as the page on reliability reads them."""
    file.write_text(json.dumps([asdict(total) for total in totals], indent=1) + "\n")


def describe_totals(totals: Sequence[Total], tests: Sequence[FaultTest]) -> str:
    """Return the table as a terminal shows it."""
    lines = [f"{'test':8} {'cases':>6} {'right':>6} {'wrong':>6} {'skipped':>7}  tried"]
    for total, test in zip(totals, tests, strict=True):
        counts = f"{total.cases:6} {total.right:6} {total.wrong:6} {total.skipped:7}"
        lines.append(f"{test.name:8} {counts}  {total.units:,} {test.unit}")
    return "\n".join(lines)
