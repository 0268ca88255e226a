"""`hmoe config`: a recipe in full."""

import json
from typing import Annotated

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.recipe import read_recipe_argument
from hmoe.config import recipes

_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of YAML.")]


def print_recipe(context: typer.Context, recipe: Recipe, as_json: _AsJson = False) -> None:
    """Print a recipe in full as YAML, all defaults too."""
    config = read_recipe_argument(recipe, context.args)[1]
    if as_json:
        typer.echo(json.dumps(config.model_dump(mode="json")))
    else:
        typer.echo(recipes.dump_recipe(config), nl=False)
