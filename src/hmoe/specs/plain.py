"""Specs to and from plain dicts, lists and numbers: what JSON and YAML can hold."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from hmoe.errors import ConfigError
from hmoe.specs.fields import get_default

SpecType = TypeVar("SpecType")


def to_plain(value: Any) -> Any:
    """Return a spec as a dict of its fields in their order, specs within it too.

    An empty mapping is left out, and a field at its default if it is marked `WRITTEN_WHERE_SET`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        items = {
            field.name: getattr(value, field.name)
            for field in fields(value)
            if not (field.metadata.get("written_where_set") and getattr(value, field.name) == field.default)
        }
        return {
            name: to_plain(item)
            for name, item in items.items()
            if not (isinstance(item, Mapping) and not item)
        }
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def from_plain(spec_class: type[SpecType], options: Mapping[str, Any], name: str) -> SpecType:
    """Make a spec from a dict of its fields; `name` begins the complaint about an unknown or a missing one.

    Raises:
        ConfigError: also where a value is wrong, as the spec itself words it.
    """
    try:
        return spec_class(**options)
    except TypeError as error:
        message = str(error).removeprefix(f"{spec_class.__name__}.__init__() ")
        raise ConfigError(f"{name} = {dict(options)}: {message}") from None


def list_options(spec: Any) -> dict[str, Any]:
    """Return the fields that are not at their default, by name."""
    options = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {name: value for name, value in options.items() if value != get_default(type(spec), name)}
