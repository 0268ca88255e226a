"""Small runs, and what they leave behind."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hmoe.config import recipes
from hmoe.runs.run_folder import RunFolder
from hmoe.train.console import Console
from hmoe.train.loop import train_run
from tests.conftest import tiny

SMALL = ["train.steps=6", "train.save_every=2", "train.eval_every=3", "train.sample_every=0"]


def run(folder: Path, *overrides: str, recipe: str = "tiny") -> list[dict[str, Any]]:
    """Train in this process; return the rows of metrics.jsonl."""
    config = recipes.read_recipe(recipe, [*tiny(recipe), *SMALL, *overrides])[1]
    with RunFolder(folder, config) as opened:
        train_run(config, opened, Console())
    return rows(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of metrics and of the files of the newest checkpoint."""
    newest = max((folder / "checkpoints").glob("step-????????"))
    files = [folder / "metrics.jsonl", *newest.iterdir()]
    return {
        f"{p.parent.name}/{p.name}".removeprefix(f"{folder.name}/"): hashlib.sha256(
            p.read_bytes()
        ).hexdigest()
        for p in files
    }


def command(folder: Path, *overrides: str) -> list[str]:
    """The command line of the same run."""
    return [
        sys.executable,
        "-m",
        "hmoe",
        "train",
        "tiny",
        "--run",
        str(folder),
        *tiny("tiny"),
        *SMALL,
        *overrides,
    ]


def call(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command with one thread, as all runs that are compared bit by bit must."""
    return subprocess.run(words, capture_output=True, text=True, check=False, env=one_thread(), **options)


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
