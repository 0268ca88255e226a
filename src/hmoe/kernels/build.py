"""`python -m hmoe.kernels.build`: compile the optional C++ library into the cache folder."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from hmoe.errors import ConfigError, HMoEError
from hmoe.kernels import native

_ABOUT = "Compile the optional C++ kernels for this processor into the cache folder; takes seconds and a C++ compiler."


def build_library(extra_flags: Sequence[str] = ()) -> None:
    """Compile the library into the cache folder, with some more compiler flags; takes seconds.

    Raises:
        ConfigError: if this machine cannot use the library, or has no compiler.
        HMoEError: if the compiler fails, or Linux does not grant the tile registers.
    """
    if native.explain_obstacle():
        raise ConfigError(f"nothing to build: {native.explain_obstacle()}; PyTorch's own kernels are used")
    compiler = next(filter(None, map(shutil.which, native.COMPILERS)), None)
    if compiler is None:
        raise ConfigError(f"no C++ compiler found, looked for {', '.join(native.COMPILERS)}")
    path = native.library_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two builds at a time must not write to one file, and a library that is half written must not be loaded.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    sources = str(native.SOURCES / "expert_ffn.cpp")
    command = [compiler, *native.FLAGS, *extra_flags, sources, "-o", str(temporary)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        raise HMoEError(f"{compiler} failed: {(errors or result.stderr.splitlines() or ['no message'])[0]}")
    temporary.replace(path)
    native.get_library.cache_clear()
    if native.get_library() is None:
        raise HMoEError(
            f"{path} was built but cannot be used: loading it fails, or Linux does not grant the tile registers"
        )


def run_build_module(arguments: Sequence[str]) -> int:
    """Build the library, say so in one line, and return the exit code as in `hmoe.errors`."""
    parser = argparse.ArgumentParser(prog="python -m hmoe.kernels.build", description=_ABOUT)
    unknown = parser.parse_known_args(arguments)[1]  # -h and --help end here
    if unknown:
        print(f"hmoe: error: {unknown[0]}: unknown argument; {parser.prog} takes none", file=sys.stderr)
        return ConfigError.exit_code
    try:
        build_library()
    except HMoEError as error:
        print(f"hmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"hmoe: error: {error.filename or 'cache folder'}: {error.strerror or error}", file=sys.stderr)
        return ConfigError.exit_code
    print(f"hmoe: {native.describe_library()}: {native.library_path()}")
    return 0


if __name__ == "__main__":
    sys.exit(run_build_module(sys.argv[1:]))
