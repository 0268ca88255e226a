"""Which code wrote a row of a table. No torch."""

import subprocess
from pathlib import Path

from hmoe import __version__


def find_commit() -> str:
    """Return the commit of a checkout, with + where its files differ from it; the version of an installed package."""
    root = Path(__file__).parents[3]
    if not (root / "pyproject.toml").is_file():
        return __version__
    commit, changes = _ask_git(root, "rev-parse", "HEAD"), _ask_git(root, "status", "-s", "-uno")
    return __version__ if commit is None else commit[:12] + "+" * bool(changes)


def _ask_git(root: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if result.returncode else result.stdout.strip()
