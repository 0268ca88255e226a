"""`hmoe plan`: what a recipe will cost."""

from typing import Annotated, Any

import typer

from hmoe.cli.arguments import Recipe
from hmoe.cli.output import print_note, print_numbers
from hmoe.cli.recipe import read_recipe_argument
from hmoe.config.run import RunConfig

_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object; parameters, FLOPs per token, bytes.")]
_Memory = Annotated[
    float | None,
    typer.Option(
        metavar="GB", min=0.001, max=1000000.0, help="Plan for a GPU with this memory, not for this machine."
    ),
]


def plan_recipe(
    context: typer.Context,
    recipe: Recipe,
    as_json: _AsJson = False,
    memory: _Memory = None,
) -> None:
    """Print parameters, FLOPs, tokens and memory of a recipe, without making a tensor."""
    print_plan(read_recipe_argument(recipe, context.args)[1], as_json, memory)


def print_plan(config: RunConfig, as_json: bool, memory: float | None = None) -> None:
    """Print the plan of a recipe for a GPU with this memory in GB, or for this machine."""
    from hmoe.config.memory import Device, read_host
    from hmoe.config.plan import make_plan

    host = read_host().memory_bytes
    on_gpu = config.train.device == "cuda" or (config.train.device == "auto" and memory is not None)
    numbers = make_plan(
        config, Device("cuda" if on_gpu else "cpu", host if memory is None else round(memory * 1e9))
    )
    numbers["memory_assumed"] = _describe_assumption(on_gpu, memory)
    if config.model.moe is not None and config.model.moe.warning:
        print_note(f"warning: {config.model.moe.warning}")
    if as_json:
        print_numbers(numbers, as_json)
    else:
        _print_nested(numbers)


def _describe_assumption(on_gpu: bool, memory: float | None) -> str:
    if memory is not None:
        return f"as given, of a {'GPU' if on_gpu else 'CPU'}"
    mismatch = " although it is for a GPU" if on_gpu else ""
    return f"this machine's{mismatch}; --memory GB plans for a GPU"


def _print_nested(numbers: dict[str, Any]) -> None:
    for name, value in numbers.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            print_numbers({f"  {part}": size for part, size in value.items()}, as_json=False)
        else:
            print_numbers({name: value}, as_json=False)
