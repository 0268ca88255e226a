"""The published results as tests read them: the page, its commands, and the tables of its sweeps."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from hmoe.statistics.paired import PairedDifference, compare_paired
from hmoe.sweep.rows import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE = (RESULTS / "README.md").read_text()
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/sweep.yaml"))
# Plans with keys that have left since: only an earlier commit reads them.
RECORDS = sorted(path.parent for path in RESULTS.glob("*/plan.yaml"))


# The recipe of `arithmetic` in `strategies`, its control too, in other words: the same runs counted once.
REPEATED = ("ratio", "ratio=23-9")


def list_sweep_commands() -> dict[str, list[str]]:
    """Return the words of the page's commands that begin a sweep, by the name of its folder."""
    command = r"^(?:HMOE_EXTENSIONS=\S+ +)?hmoe (sweep .* --out .*)$"
    lines = re.findall(command, PAGE.replace("\\\n", ""), re.MULTILINE)
    commands = [shlex.split(line) for line in lines]
    return {Path(words[words.index("--out") + 1]).name: words for words in commands}


def list_bits(folder: Path) -> dict[str, dict[int, float]]:
    """Return bits per byte of each group of a folder's runs, by seed."""
    bits: dict[str, dict[int, float]] = {}
    for row in read_rows(folder / "rows.csv"):
        bits.setdefault(row.group, {})[row.seed] = row.validation_bits_per_byte or math.nan
    return bits


def subtract_groups(folder: Path, name: str, other: str) -> list[float]:
    """Return bits per byte of one group less another's, seed by seed."""
    bits = list_bits(folder)
    assert bits[name].keys() == bits[other].keys()
    return [value - bits[other][seed] for seed, value in bits[name].items()]


def list_groups() -> list[tuple[Path, list[dict[str, Any]]]]:
    """Return the groups of every plan, also of those that today's code does not read."""
    plans = sorted([*RESULTS.glob("*/sweep.yaml"), *RESULTS.glob("*/plan.yaml")])
    return [(path.parent, yaml.safe_load(path.read_text())["groups"]) for path in plans]


def compare_controls() -> dict[tuple[str, str], PairedDifference]:
    """Compare unequal experts with their controls, in every folder, with a correction over all that differ."""
    return compare_paired(
        {
            (folder.name, group["control_of"]): subtract_groups(folder, group["control_of"], group["name"])
            for folder, groups in list_groups()
            for group in groups
            if group.get("control_of") and (folder.name, group["control_of"]) != REPEATED
        }
    )
