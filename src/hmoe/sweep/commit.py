"""Which code wrote a row of a table. No torch."""

import subprocess
from pathlib import Path

from hmoe import __version__


def find_commit() -> str:
    """Return the commit of a checkout, with + where its files differ from it; the version of an installed package."""
    root = Path(__file__).parents[3]
    if not (root / "pyproject.toml").is_file():
        return __version__
    words = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    try:
        result = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return __version__
    return __version__ if result.returncode else result.stdout.strip()
