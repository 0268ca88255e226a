"""What all sections of a recipe have in common: frozen, checked, and nothing is silently ignored."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from hmoe.specs.fields import refuse_bool


def list_annotation_parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and what it is made of."""
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from list_annotation_parts(part)


class Section(BaseModel):
    """Frozen, no unknown keys, no NaN; a bool is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_not_a_number(cls, value: Any, info: Any) -> Any:
        if info.field_name in ("model", "moe", "data", "optim", "train", "parallel"):
            return value  # sections check their own
        switch = bool in list_annotation_parts(cls.model_fields[info.field_name].annotation)
        return value if switch else refuse_bool(value)

    def no_effect(self, why: str, *names: str) -> None:
        """Raise if one of `names` was given a value that would be silently ignored."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect {why}; remove it")
