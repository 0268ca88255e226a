"""`python -m hmoe.kernels.build`: compile the optional C++ library for this processor into the cache folder."""

import shutil
import subprocess
import sys

from hmoe.kernels import native

FLAGS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-shared", "-fPIC")


def build(extra: tuple[str, ...] = ()) -> str | None:
    """Compile; the reason why it cannot be done, or None. Takes seconds."""
    if native.obstacle():
        return f"nothing to build: {native.obstacle()}; PyTorch's own kernels are used"
    compiler = next(filter(None, map(shutil.which, native.COMPILERS)), None)
    if compiler is None:
        return f"no C++ compiler found, looked for {', '.join(native.COMPILERS)}"
    path = native.library_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    source = str(native.SOURCES / "expert_ffn.cpp")
    result = subprocess.run(
        [compiler, *FLAGS, *extra, source, "-o", str(temporary)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        return f"{compiler} failed: {(errors or result.stderr.splitlines() or ['no message'])[0]}"
    temporary.replace(path)
    native.library.cache_clear()
    return (
        None if native.library() is not None else f"{path} was built, but Linux does not grant the AMX tile registers"
    )


def main() -> int:
    """Build and say so in one line."""
    reason = build()
    print(
        f"hmoe: error: {reason}" if reason else f"hmoe: {native.describe()}: {native.library_path()}", file=sys.stderr
    )
    return 2 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
