"""What the RECIPE argument of `hmoe train`, `hmoe plan` and `hmoe config` names."""

from pathlib import Path

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.cli.output import print_note
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.runs.config_binding import CONFIG, is_run_folder, load_run_recipe


def read_recipe_argument(recipe: str, overrides: list[str]) -> tuple[str, RunConfig]:
    """Return (name, config) of a recipe, or of a run folder, whose config is compared with its checkpoint."""
    run = find_run(recipe)
    if run is None:
        return recipes.read_recipe(recipe, overrides)
    return run.resolve().name, load_run_recipe(run, overrides, print_note)


def find_run(recipe: str) -> Path | None:
    """Return the run folder that a recipe names, itself or by its config.yaml; a preset's name is that preset.

    A config.yaml in a folder where nothing was trained is a recipe like any other file.
    """
    if recipe in ("", *recipes.list_presets()) or "\0" in recipe:
        return None
    path = Path(recipe)
    if path.name == CONFIG and not path.is_dir():
        was_begun = (path.parent / ".lock").exists() or bool(list_checkpoint_steps(path.parent))
        return path.parent if was_begun else None
    return path if is_run_folder(path) else None
