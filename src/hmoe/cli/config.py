"""`hmoe config`: a recipe in full."""

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.recipe import read_recipe_argument
from hmoe.config import recipes


def print_recipe(context: typer.Context, recipe: Recipe) -> None:
    """Print a recipe in full as YAML, every default included."""
    typer.echo(recipes.dump_recipe(read_recipe_argument(recipe, context.args)[1]), nl=False)
