"""Verbs that take a recipe, and `hmoe info`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hmoe import __version__
from hmoe.cli.app import OVERRIDES, Recipe, app, say, show
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.runs.binding import CONFIG, is_run, load_from_run


@app.command(context_settings=OVERRIDES)
def train(
    context: typer.Context,
    recipe: Recipe,
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder; resumed if it exists. Default: runs/<recipe name>, or the run folder itself."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its plan, then end.")
    ] = False,
) -> None:
    """Train a recipe until its budget is reached; the same command resumes a run that was stopped."""
    name, config = _load(recipe, context.args)
    if dry_run:
        typer.echo(recipes.dump(config))
        _print_plan(config, as_json=False)
        return
    from hmoe.train.run_folder import RunFolder

    default = Path(recipe) if _run_of(recipe) == Path(recipe) else Path("runs") / name
    with RunFolder(run or default, config) as folder:  # refuses a busy folder before torch is imported
        from hmoe.train.console import Console
        from hmoe.train.loop import train as train_loop

        with Console() as console:
            train_loop(config, folder, console)


@app.command(context_settings=OVERRIDES)
def plan(
    context: typer.Context,
    recipe: Recipe,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; parameters, FLOPs per token, bytes.")
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0.001, max=1e6, help="Plan for a GPU with this memory, not for this machine."),
    ] = None,
) -> None:
    """Parameters, FLOPs, tokens and memory of a recipe, without making a tensor."""
    _print_plan(_load(recipe, context.args)[1], as_json, memory)


@app.command(context_settings=OVERRIDES)
def config(context: typer.Context, recipe: Recipe) -> None:
    """Print a recipe in full as YAML, every default included."""
    typer.echo(recipes.dump(_load(recipe, context.args)[1]), nl=False)


@app.command()
def info() -> None:
    """Versions, CPU and GPU features, installed extras."""
    import importlib.metadata
    import importlib.util
    import platform

    import torch

    triton = importlib.util.find_spec("triton")
    numbers: dict[str, Any] = {"hmoe": __version__, "python": platform.python_version()}
    numbers |= {name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")}
    numbers["cpu"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    numbers["cpu_bfloat16"] = "hardware" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "emulated: use float32"
    from hmoe.kernels import native

    numbers["cpu_kernels"] = native.describe()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    numbers["gpu"] = ", ".join(gpus) or "none"
    numbers["triton"] = importlib.metadata.version("triton") if triton else "not installed: used on NVIDIA GPUs"
    numbers |= {f"extra [{extra}]": _describe_extra(extra) for extra in _extras("hmoe")}
    show(numbers, as_json=False)


def _load(recipe: str, overrides: list[str]) -> tuple[str, RunConfig]:
    """(name, config) of a recipe, or of a run folder or its config.yaml, which are compared with their checkpoint."""
    run = _run_of(recipe)
    if run is None:
        return recipes.load(recipe, overrides)
    return Path(recipe).stem, load_from_run(run, overrides, say)


def _run_of(recipe: str) -> Path | None:
    """The run folder that a recipe names, itself or by its config.yaml; the name of a preset is that preset."""
    path = Path(recipe)
    run = path.parent if path.name == CONFIG else path
    return run if recipe not in ("", *recipes.presets()) and "\0" not in recipe and is_run(run) else None


def _extras(distribution: str) -> list[str]:
    """As pyproject.toml names them; none where hmoe runs without having been installed."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        return metadata(distribution).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []


def _describe_extra(extra: str) -> str:
    """`installed`, or what is missing and how to install it."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for name in _packages_of(extra):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return f"missing {', '.join(missing)}: pip install 'hmoe[{extra}]'" if missing else "installed"


def _packages_of(extra: str) -> list[str]:
    """What an extra brings, extras of hmoe's that it names included."""
    from importlib.metadata import requires

    names: dict[str, None] = {}
    for line in requires("hmoe") or []:
        need, _, condition = line.partition(";")
        if not re.search(f"extra == ['\"]{re.escape(extra)}['\"]", condition):
            continue
        name, _, more = need.partition("[")
        own = more.partition("]")[0].split(",") if name.strip() == "hmoe" else []
        inner = [package for part in own for package in _packages_of(part.strip())]
        names |= dict.fromkeys(inner or re.findall(r"^[\w.-]+", need))
    return list(names)


def _print_plan(config: RunConfig, as_json: bool, memory: float | None = None) -> None:
    from hmoe.config.memory import Device, read_host
    from hmoe.config.plan import plan

    host = read_host().memory_bytes
    on_gpu = config.train.device == "cuda" or (config.train.device == "auto" and memory is not None)
    device = Device("cuda" if on_gpu else "cpu", host if memory is None else round(memory * 1e9))
    numbers = plan(config, device)
    if memory is None:
        where = " although it is for a GPU" if on_gpu else ""
        numbers["memory_assumed"] = f"this machine's{where}; --memory GB plans for a GPU"
    else:
        numbers["memory_assumed"] = f"as given, of a {'GPU' if on_gpu else 'CPU'}"
    if config.model.moe is not None and config.model.moe.warning:
        say(f"warning: {config.model.moe.warning}")
    if as_json:
        show(numbers, as_json)
        return
    for name, value in numbers.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            show({f"  {part}": number for part, number in value.items()}, as_json)
        else:
            show({name: value}, as_json)
