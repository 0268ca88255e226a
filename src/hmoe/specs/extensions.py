"""Routers and losses from outside this package: modules that the environment names are imported before a recipe is read."""

import importlib
import os

from hmoe.errors import ConfigError

VARIABLE = "HMOE_EXTENSIONS"


def load_extensions() -> None:
    """Import the modules that HMOE_EXTENSIONS names, with commas between; what they register is then known by its name.

    Every command and every process of a training run reads the same variable, so a run resumes, serves and exports with it.

    Raises:
        ConfigError: for a module that cannot be imported.
    """
    for module in filter(None, os.environ.get(VARIABLE, "").split(",")):
        try:
            importlib.import_module(module.strip())
        except ImportError as error:
            raise ConfigError(f"{VARIABLE}: module {module.strip()} cannot be imported: {error}") from None


def hint_extensions() -> str:
    """Return how a name from outside becomes known, for the end of an error's line."""
    return f"one of your own is registered by a module that {VARIABLE} names"
