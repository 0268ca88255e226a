"""Routers and losses from outside this package: files or modules that the environment names.

They are run before a recipe is read.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from hmoe.errors import ConfigError

VARIABLE = "HMOE_EXTENSIONS"


def load_extensions() -> None:
    """Import what HMOE_EXTENSIONS names: modules, or files that end in .py, with commas between.

    What they register is then known by its name. Every command, and every process of a training run, reads
    the same variable, so a run resumes, serves and exports with it.

    Raises:
        ConfigError: for what cannot be imported.
    """
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except (ImportError, OSError, SyntaxError) as error:
            raise ConfigError(f"{VARIABLE}: {name} cannot be imported: {error}") from None


def _import_file(path: Path) -> None:
    """Import a file as the module of its name, once."""
    if path.stem in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.stem.isidentifier():
        raise ImportError("its name must be that of a module, such as my_router.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]  # half a module must not be found next time
        raise


def hint_extensions() -> str:
    """Return how a name from outside becomes known, for the end of an error's line."""
    return f"one of your own is registered by a file that {VARIABLE} names"
