"""`hmoe plan RUN --control`: the recipe of a finished run's uniform control."""

from pathlib import Path

import typer

from hmoe.cli.next_steps import make_step, name_path, print_report
from hmoe.cli.output import print_note, print_numbers
from hmoe.cli.recipe import find_run
from hmoe.config import recipes
from hmoe.errors import ConfigError


def write_control(recipe: str, overrides: list[str], out: Path | None, as_json: bool) -> None:
    """Print the recipe of a run's uniform control, or write it to a new file.

    Raises:
        ConfigError: if the recipe is no run folder, the run has no control, or the file exists.
    """
    from hmoe.runs.control import explain_control, make_uniform_control

    run = find_run(recipe)
    if run is None:
        what = (
            "is no run folder"
            if Path(recipe).exists() or recipe in recipes.list_presets()
            else "no such run folder"
        )
        raise ConfigError(
            f"{recipe}: {what}; --control needs one, whose experts were measured while it was trained"
        )
    control, summary = make_uniform_control(run)
    for warning in summary.warnings:
        print_note(warning)
    lines = explain_control(summary, control)
    if overrides:
        control = recipes.check_recipe(control.model_dump(mode="json"), overrides)
        lines.append(f"Changed afterwards: {' '.join(overrides)}.")
    control = recipes.make_data_path_absolute(control)
    text = "".join(f"# {line}\n" for line in lines) + recipes.dump_recipe(control)
    if out is not None:
        _write_new_file(out, text)
    if as_json:
        width = control.model.moe.expert_widths[0] if control.model.moe else None
        measured = {
            "mean_activated_width": summary.mean_width,
            "experts_per_token": summary.experts_per_token,
        }
        print_numbers(
            {"run": str(run), **measured, "width": width, "recipe": control.model_dump(mode="json")}, True
        )
    elif out is None:
        typer.echo(text, nl=False)
    else:
        print_report({}, lines, [make_step("train", name_path(out))], as_json=False)


def _write_new_file(out: Path, text: str) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"--out {out}: a recipe's file ends with .yaml; nearest is {out.with_suffix('.yaml')}"
        )
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"--out {out}: exists already; choose another file") from None
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None
