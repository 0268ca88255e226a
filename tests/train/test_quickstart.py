"""What the quickstart reaches, and in what time it may be expected."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_quickstart_reaches_what_the_readme_says(tmp_path: Path) -> None:
    """The README states the bits per byte it reaches; the margin allows for another CPU and number of threads."""
    command = [sys.executable, "-m", "hmoe", "train", "quickstart", "--run", str(tmp_path / "r")]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 960
    assert rows[-1]["validation_bits_per_byte"] < 1.50
    uniform = 2 * 1536 / 8
    late = rows[-100:]
    assert sum(row["mean_activated_width"] for row in late) / len(late) < 0.95 * uniform
