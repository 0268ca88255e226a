"""How the fields of a spec are checked: every complaint is a ConfigError that names field, value and what is allowed.

A field's type says most: `bool`, `Literal[...]` and `X | None` are checked as they stand. Numbers carry their
range, `k: Annotated[int, Whole(1)]`. pydantic reads the same annotations where a recipe is parsed; it needs
no help but one: it would take true for 1.
"""

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from hmoe.errors import ConfigError

_LARGEST_INTEGER = 2**31 - 1
# Metadata of a field that recipes and records hold only where it is not at its default.
WRITTEN_WHERE_SET = types.MappingProxyType({"written_where_set": True})


def refuse_bool(value: Any) -> Any:
    """Return the value; raise ValueError if it is, or holds, a truth value where numbers belong."""
    values = (
        value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else (value,)
    )
    if any(isinstance(each, bool) for each in values):
        raise ValueError("must not be true or false")
    return value


class Range:
    """What numbers a field may hold; this one, any: the spec checks them itself."""

    def describe_fault(self, value: Any) -> str | None:
        """Return what the value must be, or None if it is right."""
        return None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Let pydantic parse the type, but refuse true and false, which it would take for 1 and 0."""
        function = {"type": "no-info", "function": refuse_bool}
        return {"type": "function-before", "function": function, "schema": handler(source)}


class Whole(Range):
    """Integers from `least` to `most`; where `most` is left out, below 2**31."""

    def __init__(self, least: int, most: int | None = None) -> None:
        self.least, self.most = least, most

    def describe_fault(self, value: Any) -> str | None:
        """Return what the value must be, or None if it is right."""
        most = _LARGEST_INTEGER if self.most is None else self.most
        if type(value) is int and self.least <= value <= most:
            return None
        if self.most is None:
            return f"must be an integer of at least {self.least}, below 2**31"
        return f"must be an integer from {self.least} to {most}"


class Real(Range):
    """Numbers from 0 to `most`, 0 itself only if it is `allowed`."""

    def __init__(self, most: float, *, zero: bool) -> None:
        self.most, self.zero = most, zero

    def describe_fault(self, value: Any) -> str | None:
        """Return what the value must be, or None if it is right."""
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= self.most
        if right and (value or self.zero):
            return None
        if self.zero:
            return f"must be from 0 to {self.most:g}"
        return "must be in (0, 1]" if self.most == 1 else f"must be above 0 and at most {self.most:g}"


class Each(Range):
    """A list, or a mapping by name, whose every number lies in one range."""

    def __init__(self, range_: Range, least: int = 0, most: int = 4096) -> None:
        self.range, self.least, self.most = range_, least, most

    def describe_fault(self, value: Any) -> str | None:
        """Return what the value must be, or None if it is right."""
        if not isinstance(value, tuple | list | Mapping) or not self.least <= len(value) <= self.most:
            return f"must have {self.least} to {self.most} numbers"
        return None

    def list_values(self, value: Any) -> list[tuple[Any, Any]]:
        """Return (key, number) of all that it holds, to be checked one by one."""
        return list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))


class Spec:
    """Base of all specs: frozen values that check themselves when they are made.

    Attributes:
        section: the place of the spec in a recipe, which begins every complaint.
    """

    section: ClassVar[str] = ""
    # Read by pydantic when it parses a recipe.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, annotation in get_field_types(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            check_value(f"{self.section}.{name}", value, annotation)
            if type(value) is int and float in get_options(annotation):
                object.__setattr__(self, name, float(value))  # 1 and 1.0 are written alike
        self.check_fields()

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together; each alone has its right type and range."""

    def refuse_unused(self, why: str, *names: str) -> None:
        """Raise ConfigError if one of these fields has a value that would be silently ignored."""
        for name in names:
            if getattr(self, name) != get_default(type(self), name):
                raise ConfigError(f"{self.section}.{name} has no effect {why}; remove it")


@functools.cache
def get_field_types(spec_class: Any) -> dict[str, Any]:
    """Return the annotated type of every field of a spec class."""
    hints = get_type_hints(spec_class, include_extras=True)
    return {field.name: hints[field.name] for field in fields(spec_class) if field.init}


def get_default(spec_class: Any, name: str) -> Any:
    """Return the default of a field."""
    field = next(field for field in fields(spec_class) if field.name == name)
    return field.default if not callable(field.default_factory) else field.default_factory()


def get_options(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type, that an annotation names."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Raise ConfigError unless the value has the annotated type and lies in the annotated range."""
    kind, *rest = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    ranges = [mark for mark in rest if isinstance(mark, Range)]
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None and types.NoneType in options:
        return
    literals = [option for option in options if get_origin(option) is Literal]
    if literals:
        allowed = (*([None] if types.NoneType in options else []), *get_args(literals[0]))
        _check_choice(name, value, allowed)
    if bool in options and not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}, must be true or false")
    for range_ in ranges:
        _check_range(name, value, range_)


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        shown = ", ".join("null" if choice is None else str(choice) for choice in allowed)
        raise ConfigError(f"{name} = {value!r}, must be one of {shown}")


def _check_range(name: str, value: Any, range_: Range) -> None:
    if isinstance(value, Spec):  # the other half of a union, such as a rule for widths: it has checked itself
        return
    fault = range_.describe_fault(value)
    if fault is not None:
        raise ConfigError(f"{name} = {value!r}, {fault}")
    if isinstance(range_, Each):
        for key, each in range_.list_values(value):
            _check_range(f"{name}.{key}", each, range_.range)
