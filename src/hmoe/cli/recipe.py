"""What the RECIPE argument of `hmoe train`, `hmoe plan` and `hmoe config` names."""

from collections.abc import Callable
from pathlib import Path

from hmoe.cli.output import print_note
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.config_binding import find_run_folder, load_run_recipe


def read_recipe_argument(
    recipe: str, overrides: list[str], say: Callable[[str], None] = print_note
) -> tuple[str, RunConfig]:
    """Return (name, config) of a recipe, or of a run folder, whose config is compared with its checkpoint."""
    run = find_run(recipe)
    if run is None:
        return recipes.read_recipe(recipe, overrides)
    return run.resolve().name, load_run_recipe(run, overrides, say)


def find_run(recipe: str) -> Path | None:
    """Return the run folder that a recipe names, itself or by its config.yaml; a preset's name is that preset."""
    if not recipe:
        raise ConfigError(
            "RECIPE: is empty; must be a preset, a .yaml file or a run folder; see `hmoe presets`"
        )
    return None if recipe in recipes.list_presets() or "\0" in recipe else find_run_folder(Path(recipe))
