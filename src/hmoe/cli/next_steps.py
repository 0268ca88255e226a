"""What a verb says when it has ended: its record as text or as JSON, and commands that can follow."""

import itertools
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from hmoe.errors import HMoEError

if TYPE_CHECKING:
    from hmoe.config.run import RunConfig
    from hmoe.data.shards import Index

FILES = "FILES: your text files or folders"
_FIRST_RECIPE = "tiny"  # trains in seconds on a laptop, with any vocabulary


class NextStep(NamedTuple):
    """A command that can follow, as a shell takes it.

    Attributes:
        command: the whole line.
        comment: what a word in capitals stands for; "" where the line can be pasted as it is.
    """

    command: str
    comment: str = ""


def print_report(
    record: dict[str, Any], lines: Iterable[str], steps: Sequence[NextStep], as_json: bool
) -> None:
    """Print what a verb has done on stdout: lines for people, or the record as one JSON object."""
    if as_json:
        typer.echo(json.dumps({**record, "next": [step.command for step in steps]}, allow_nan=False))
        return
    for line in lines:
        typer.echo(line)
    print_steps(steps)


def print_steps(steps: Sequence[NextStep]) -> None:
    """Print the commands that can follow, a line each."""
    if steps:
        typer.echo("next:")
    for step in steps:
        typer.echo(f"  {step.command}" + (f"  # {step.comment}" if step.comment else ""))


def make_step(*words: str | Path, comment: str = "") -> NextStep:
    """Return a step of `hmoe` with these words, quoted for a shell."""
    return NextStep(shlex.join(["hmoe", *map(str, words)]), comment)


def name_path(path: Path) -> str:
    """Return a path as an argument that is neither taken for an option nor for a preset."""
    from hmoe.config.recipes import list_presets

    return f"./{path}" if str(path).startswith("-") or str(path) in list_presets() else str(path)


def set_key(key: str, value: str) -> str:
    """Return an override of a recipe key by a text, quoted where YAML would read something else."""
    import yaml

    try:
        is_plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return f"{key}={value if is_plain else json.dumps(value)}"


def list_new_run_steps(
    run: Path, config: "RunConfig", tokenizer: str, begin: Sequence[int]
) -> list[NextStep]:
    """Return what can be done with a run at step 0: write with it at once, and train it; see `list_training_steps`."""
    writes = [make_step("generate", name_path(run), "She was")] if config.model.causal else []
    return [*writes, *list_training_steps(run, config, tokenizer, begin)]


def list_training_steps(
    run: Path, config: "RunConfig", tokenizer: str, begin: Sequence[int]
) -> list[NextStep]:
    """Return what trains a run at step 0: at once where its data fit it, else after text has been prepared.

    Args:
        run: its folder.
        config: its recipe.
        tokenizer: fingerprint of the model's tokenizer.
        begin: tokens that every text of the model begins with.
    """
    if _can_train(config, tokenizer, begin):
        return [make_step("train", name_path(run))]
    free = Path("data") / run.resolve().name if config.data.path == "corpus" else Path(config.data.path)
    out = _choose_free_folder(free)
    prepare = make_step(
        "data", "prepare", "FILES", "--tokenizer", name_path(run), "--out", name_path(out), comment=FILES
    )
    return [prepare, make_step("train", name_path(run), *_change_data(config, out))]


def list_steps_of_data(out: Path, index: "Index", tokenizer: str) -> list[NextStep]:
    """Return what trains on a folder of prepared data: the run whose tokenizer was used, else a small model."""
    run = _find_waiting_run(tokenizer, out, index)
    return [run] if run is not None else _list_small_models(out, index)


def _find_waiting_run(tokenizer: str, out: Path, index: "Index") -> NextStep | None:
    """Return what trains the run that the tokenizer is of, if it stands at step 0 and the data fit it."""
    from hmoe.checkpoint.manifest import read_newest_state
    from hmoe.runs.config_binding import is_run_folder, load_run_recipe

    run = Path(tokenizer)
    try:
        state = read_newest_state(run) if is_run_folder(run) else None
        if state is None or state["data"] is not None:
            return None
        changes = _change_data(load_run_recipe(run, [], lambda line: None), out)
        config = load_run_recipe(run, changes, lambda line: None)
        fits = _can_train(config, state["tokenizer"], state["begin"])
    except (HMoEError, OSError, KeyError):  # a damaged run is told by whoever trains it
        return None
    return make_step("train", name_path(run), *changes) if fits else None


def _list_small_models(out: Path, index: "Index") -> list[NextStep]:
    """Return what trains a small model of the data's vocabulary; nothing where the data are too few for one."""
    from hmoe.config.recipes import read_recipe

    changes = [set_key("data.path", str(out)), f"model.vocab={index.vocab_size}"]
    folder = Path("runs") / _FIRST_RECIPE
    if folder.exists():
        folder = _choose_free_folder(Path("runs") / out.resolve().name)
        changes += ["--run", str(folder)]
    for length in (None, 64, 32, 16, 8, 4, 2, 1):
        shorter = [] if length is None else [f"data.sequence_length={length}"]
        config = read_recipe(_FIRST_RECIPE, [*changes[:2], *shorter])[1]
        if _can_train(config, index.tokenizer_fingerprint, index.begin):
            return [make_step("train", _FIRST_RECIPE, *changes[:2], *shorter, *changes[2:])]
    return []


def _can_train(config: "RunConfig", tokenizer: str, begin: Sequence[int]) -> bool:
    """Return whether the data of a recipe are there, of this tokenizer, and enough for a sequence."""
    from hmoe.data.batches import Batches
    from hmoe.data.open import open_data

    try:
        index = open_data(config, None, tokenizer)
        Batches(index, config.data, config.seed)
    except HMoEError:
        return False
    return index.begin == tuple(begin) and index.vocab_size <= config.model.vocab


def _change_data(config: "RunConfig", out: Path) -> list[str]:
    """Return the overrides by which a run of this recipe trains on a folder of data."""
    if config.data.path != "corpus" and Path(config.data.path).absolute() == out.absolute():
        return []
    # The tokenizer of the embedded corpus has no place beside other data.
    return [set_key("data.path", str(out)), *["data.tokenizer=null"] * (config.data.tokenizer is not None)]


def _choose_free_folder(folder: Path) -> Path:
    """Return the folder, or the next name like it under which nothing lies."""
    later = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], later) if not path.exists() or _is_empty(path))


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
