"""What pydantic and specs find wrong in a recipe, as one line that names key, value and nearest choice."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmoe.config.key_names import OTHER_NAMES
from hmoe.config.run import RunConfig
from hmoe.config.section import list_annotation_parts
from hmoe.specs.extensions import hint_extensions
from hmoe.specs.fields import get_field_types
from hmoe.specs.routers import ROUTERS
from hmoe.specs.routers.base import RouterSpec

_CHOICES = {"rule", "list"}
_PLACES = {  # of specs in a recipe; they know their own section only
    "model": "model", "moe": "model.moe", "router": "model.moe.router", "zero": "model.moe.zero",
    "hyper": "model.moe.hyper", "widths": "model.moe.widths", "rope_scaling": "model.rope_scaling",
}  # fmt: skip


def list_recipe_keys() -> list[str]:
    """Return every dotted key that a recipe may hold."""
    return sorted(set(_known(RunConfig, "")))


def describe_unknown_recipe(recipe: str, presets: Sequence[str]) -> str:
    """Describe as one line why a name is no recipe: what kind of folder it is, or the preset that is nearest."""
    folder = Path(recipe)
    if recipe and "\0" not in recipe and folder.is_dir():
        if (folder / "config.yaml").is_file():
            own = folder / "config.yaml"
            return f"{recipe}: is a run folder; only a preset or a .yaml file works here, such as its {own}"
        if (folder / "config.json").is_file():
            return f"{recipe}: is a Hugging Face folder, not a recipe; `hmoe import {recipe} RUN` makes a run of it"
        return (
            f"{recipe}: is a folder without config.yaml; a recipe is a preset, a .yaml file or a run folder"
        )
    if "=" in recipe:
        return f"{recipe}: is an override; a preset, a .yaml file or a run folder comes first"
    if "/" in recipe:
        return f"{recipe}: no such run folder or .yaml file"
    is_file = "\0" not in recipe and Path(f"{recipe}.yaml").is_file()
    nearest = f"{recipe}.yaml" if is_file else difflib.get_close_matches(recipe, presets, 1, 0)[0]
    return f"no preset or .yaml file {recipe!r}; nearest is {nearest}; see `hmoe presets`"


def describe_problem(problem: Any) -> str:
    """Describe what pydantic found, as one line that names key, value and nearest choice."""
    key = ".".join(
        _named(str(part)) for part in problem["loc"] if part not in _CHOICES and part not in ROUTERS
    )
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _kind_names(problem["loc"])
        if key in list_recipe_keys():
            takes = f"; it takes {', '.join(allowed)}" if allowed else ""
            return f"{key} = {_shown(problem['input'])}: does not belong to this kind of {key.split('.')[-2]}{takes}"
        return f"{key}: unknown key; nearest is {find_nearest_key(key, allowed)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"].startswith("union_tag"):
        return f"{key} = {_shown(problem['input'])}: name must be one of {', '.join(ROUTERS)}; {hint_extensions()}"
    if problem["type"] == "tuple_type" and key.endswith("widths"):
        return f"{key} = {_shown(problem['input'])}: must be a list of hidden units or a rule {{shape, total, experts}}"
    message = (
        problem["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("Input should", "must")
    )
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return _placed(message) or (f"{key}: {message}" if key else message)
    return f"{key} = {_shown(problem['input'])}: {message}"


def _placed(message: str) -> str | None:
    """Return a spec's complaint with its section's place in a recipe; None if it is not one of a spec."""
    section, rest = re.match(r"(\w*)(.*)", message, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{_PLACES[section]}{rest}" if section in _PLACES and rest[:1] in (".", ":") else None


def _named(key: str) -> str:
    return key if key.isprintable() and len(key) <= 80 else reprlib.repr(key)  # still one line


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def find_nearest_key(key: str, allowed: Sequence[str] = ()) -> str:
    """Return the likest allowed key of its section.

    Without allowed ones it is a key of the same name elsewhere, else the likest of the section, else of all.
    """
    section, _, name = key.rpartition(".")
    if not allowed and name in OTHER_NAMES:
        return OTHER_NAMES[name]
    same = [known for known in list_recipe_keys() if known.rpartition(".")[2] == name]
    near = [known for known in list_recipe_keys() if section and known.rpartition(".")[0] == section]
    near = [known for known in near if not allowed or known.rpartition(".")[2] in allowed]
    return difflib.get_close_matches(key, near if allowed else same or near or list_recipe_keys(), 1, 0)[0]


def _kind_names(loc: Sequence[Any]) -> list[str]:
    """Return the fields' names of the kind of router that a problem is about, if it is about one."""
    kinds: list[Any] = [kind for name, kind in ROUTERS.items() if name in loc]
    return [field.name for kind in kinds for field in fields(kind) if field.name != "name"]


def _known(section: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of a section, or of a spec."""
    is_spec = is_dataclass(section)
    types = (
        get_field_types(section) if is_spec else {n: f.annotation for n, f in section.model_fields.items()}
    )
    for name, annotation in types.items():
        yield prefix + name
        parts = list(list_annotation_parts(annotation))
        for kind in [*parts, *(ROUTERS.values() if RouterSpec in parts else ())]:
            if is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
                yield from _known(kind, f"{prefix}{name}.")
    if "weights" in types:
        yield f"{prefix}weights.DOMAIN"
