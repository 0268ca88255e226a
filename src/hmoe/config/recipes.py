"""A recipe (preset name or YAML file) plus overrides -> RunConfig, with one-line errors that name the key."""

import functools
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from hmoe.config.recipe_errors import (
    describe_problem,
    describe_unknown_recipe,
    find_nearest_key,
    list_recipe_keys,
)
from hmoe.config.recipe_file import NamesLoader, parse_tree, read_tree
from hmoe.config.run import CHOSEN, RESUMABLE, RunConfig
from hmoe.errors import ConfigError
from hmoe.specs.extensions import load_extensions
from hmoe.specs.model import ModelSpec
from hmoe.specs.plain import to_plain
from hmoe.specs.routers import ROUTERS
from hmoe.storage import has_utf8_name

Checked = TypeVar("Checked")
# Beside the kinds of routers: what pydantic inserts into a key where it chose between kinds.
_WEIGHTS = "data.weights."  # before the name of a domain
_DESCRIBED = 20  # problems of a recipe
_ROUTER = "model.moe.router."  # its kind decides which keys there are
_KINDS = {"name": (), "shape": ("total", "experts")}  # a new kind keeps only these keys of the old section


def list_presets() -> list[str]:
    """Return the names of the presets that are shipped."""
    files = resources.files("hmoe.config.presets").iterdir()
    return sorted(f.name[:-5] for f in files if f.name.endswith(".yaml") and not f.name.startswith("_"))


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> tuple[str, RunConfig]:
    """Read a preset name or a YAML path, apply `a.b=c` / `--a.b c` overrides.

    Returns:
        (recipe name, checked config)

    Raises:
        ConfigError: naming the key, the value, what is allowed and the nearest valid key.
    """
    try:
        tree = resolve_recipe(recipe, overrides)
    except RecursionError:
        raise ConfigError(f"{recipe}: refers to itself") from None
    return Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe, check_recipe(tree)


def resolve_recipe(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the recipe as plain values, what it inherits and overrides included, before it is checked."""
    return _overridden(_read(recipe, None, 0), overrides)


def _overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for key, value in _parse(overrides):
        change = value
        # A domain's name is one part, whatever it holds: data.weights.c4.en.
        parts = (
            [*_WEIGHTS[:-1].split("."), key.removeprefix(_WEIGHTS)]
            if key.startswith(_WEIGHTS)
            else key.split(".")
        )
        for part in reversed(parts):
            change = {part: change}
        tree = _merge(tree, change)
    return tree


def replace_model(recipe: str, model: ModelSpec, overrides: Sequence[str], data_path: str) -> RunConfig:
    """Read a recipe, but replace its model by a given one and the embedded corpus by `data_path`.

    The embedded corpus has its own tokenizer, whose key goes with it.

    Raises:
        ConfigError: as `load`.
    """
    tree = _read(recipe, None, 0) | {"model": to_plain(model)}
    if tree["data"]["path"] == "corpus" != data_path:
        tree["data"] = {key: value for key, value in tree["data"].items() if key != "tokenizer"} | {
            "path": data_path
        }
    return check_recipe(tree, overrides)


def check_recipe(tree: Any, overrides: Sequence[str] = ()) -> RunConfig:
    """Validate a tree of plain values, overrides applied."""
    return _checked(RunConfig, _overridden(tree, overrides))


def check_model(tree: Any) -> ModelSpec:
    """Validate what is under `model`."""
    return _checked(ModelSpec, tree)


def _checked(kind: type[Checked], tree: Any) -> Checked:
    load_extensions()
    try:
        checked: Checked = _parser(kind, tuple(ROUTERS.items())).validate_python(tree)  # type: ignore[arg-type]
        return checked
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # Looking for what is nearest takes long, so that of very many only some are looked at.
        lines = list(dict.fromkeys(map(describe_problem, problems[:_DESCRIBED])))
        others = len(lines) - 1 + max(len(problems) - _DESCRIBED, 0)
        more = f" (and {others} more)" if others else ""
        raise ConfigError(lines[0] + more) from None


@functools.lru_cache(maxsize=8)
def _parser(kind: Any, routers: Any) -> TypeAdapter[Any]:
    """Return pydantic's parser of a kind.

    It is another one once further routers are known, which are part of its schema.
    """
    if issubclass(kind, BaseModel):
        kind.model_rebuild(force=True)
    return TypeAdapter(kind)


def dump_recipe(config: RunConfig) -> str:
    """Return YAML that `load` reads back to an equal config."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)
    return text


def list_changed_values(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys that differ and may not when a run is resumed -> (old value, new value).

    What a run chooses by itself differs only where both give it.
    """
    before, after = (dict(flatten_tree(config.model_dump(mode="json"))) for config in (old, new))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    changed -= {key for key in CHOSEN if None in (before[key], after[key])}
    return {key: (before.get(key), after.get(key)) for key in sorted(changed - RESUMABLE)}


def make_data_path_absolute(config: RunConfig) -> RunConfig:
    """Return the config with a data.path that leads to the same folder from every working directory."""
    if config.data.path == "corpus":
        return config
    path = Path(config.data.path).absolute()
    if not has_utf8_name(path):  # a recipe cannot hold it: it stays relative to the working directory
        return config
    data = config.data.model_copy(update={"path": str(path)})
    return config.model_copy(update={"data": data})


def _read(recipe: str, folder: Path | None, depth: int) -> dict[str, Any]:
    if depth > 8:
        raise ConfigError(f"base: {recipe}: more than 8 recipes inherit from each other; is there a circle?")
    path = Path(recipe)
    path = folder / path if folder is not None and not path.is_absolute() else path
    if recipe.endswith((".yaml", ".yml")):
        folder = path.parent
        tree = _resolve_data_path(read_tree(path), folder)
    else:
        shipped = resources.files("hmoe.config.presets") / f"{recipe}.yaml"
        if not recipe or set(recipe) & set("/\\\0") or not shipped.is_file():
            raise ConfigError(describe_unknown_recipe(recipe, list_presets()))
        tree = parse_tree(shipped.read_text(encoding="utf-8"), recipe)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"base = {base!r}: must be a preset name or a .yaml path")
    merged: dict[str, Any] = _merge(_read(base, folder, depth + 1), tree)
    return merged


def _resolve_data_path(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve a relative data.path of a file from that file's folder, as `base:` is."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree  # refused when it is checked
    path = data.get("path")
    if not isinstance(path, str) or path in ("", "corpus") or "\0" in path or Path(path).is_absolute():
        return tree
    if not (folder / path).exists() and Path(path).exists():
        return tree  # it was relative to the working directory before; a recipe that relies on it still works
    full = (folder / path).absolute()
    return tree | {"data": data | {"path": str(full) if has_utf8_name(full) else os.path.relpath(full)}}


def _parse(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    words = iter(overrides)
    for word in words:
        dashed = word.startswith("--")
        word_key = word.removeprefix("--")
        # A domain's name may hold "=", a weight does not.
        key, equals, text = (
            word_key.rpartition("=") if word_key.startswith(_WEIGHTS) else word_key.partition("=")
        )
        key = key if equals else word_key
        if not equals:
            text = next(words, "") if dashed else ""
        if not key or not (equals or (dashed and text)):
            raise ConfigError(
                f"{word}: an override is key=value; nearest key is {find_nearest_key(key)}",
                argument="overrides",
            )
        open_ended = any(key.startswith(prefix) and key != prefix for prefix in (_WEIGHTS, _ROUTER))
        if key not in list_recipe_keys() and not open_ended:
            raise ConfigError(f"{key}: unknown key; nearest is {find_nearest_key(key)}", argument="overrides")
        try:
            yield key, yaml.load(text, NamesLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ConfigError(
                f"{key} = {text[:80]!r}: not a YAML value: {' '.join(str(error).split())[:120]}"
            ) from None


def _merge(base: Any, new: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(new, dict)):
        return new
    for kind, kept in _KINDS.items():
        if kind in new and base.get(kind, new[kind]) != new[kind]:
            base = {key: base[key] for key in kept if key in base}
    return base | {key: _merge(base.get(key), value) for key, value in new.items()}


def flatten_tree(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the values of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten_tree(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
