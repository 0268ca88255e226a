"""What router specs check of their fields; every complaint is a ConfigError that names field, value and what is allowed."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hmoe.errors import ConfigError


def switches(spec: Any, *names: str) -> None:
    """Each is True or False."""
    for name in names:
        if not isinstance(getattr(spec, name), bool):
            raise ConfigError(f"router.{name} = {getattr(spec, name)!r}, must be true or false")


def whole(spec: Any, **least: int) -> None:
    """Each is an integer of at least this; None where a spec allows it."""
    for name, low in least.items():
        value = getattr(spec, name)
        if value is None and name not in {"k", "min_capacity"}:
            continue
        if type(value) is not int or not low <= value < 2**31:
            raise ConfigError(f"router.{name} = {value!r}, must be an integer of at least {low}, below 2**31")


def real(spec: Any, **most: float) -> None:
    """Each is a number up to this, or None; shares (up to 1) may be 0, factors may not."""
    for name, high in most.items():
        value, positive = getattr(spec, name), high > 1
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= high
            or (positive and not value)
        ):
            raise ConfigError(
                f"router.{name} = {value!r}, must be {'above' if positive else 'from'} 0 {'and at most' if positive else 'to'} {high:g}"
            )


def one_of(spec: Any, **allowed: Sequence[Any]) -> None:
    """Each is one of these."""
    for name, values in allowed.items():
        if getattr(spec, name) not in values:
            shown = ", ".join("null" if value is None else value for value in values)
            raise ConfigError(f"router.{name} = {getattr(spec, name)!r}, must be one of {shown}")


def no_effect(spec: Any, why: str, *names: str) -> None:
    """Each is at its default."""
    defaults = {field.name: field.default for field in fields(spec)}
    for name in names:
        if getattr(spec, name) != defaults[name]:
            raise ConfigError(f"router.{name} has no effect {why}; remove it")
