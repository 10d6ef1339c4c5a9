"""What every section of the settings is made of: its base class and the types that several of them use."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

CHECK = "tandem_check"  # the error type whose message is the expectation itself; its ctx may name the `other` setting


def distinct(values: Items) -> Items:
    """The values as they are; a validator that refuses one that comes twice."""
    if len(set(values)) < len(values):
        raise PydanticCustomError(CHECK, "each entry once only")
    return values


def _user_path(value: Any) -> Any:
    if value == "":
        raise PydanticCustomError(CHECK, "a path, not an empty one")
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 - a URL stays as it is


Items = TypeVar("Items", bound=tuple[Hashable, ...])
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
FoldNumber = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Column = Annotated[str, Field(min_length=1)]
UserPath = Annotated[Path, BeforeValidator(_user_path)]  # ~ is the home folder
NAME = "a name of at most 128 letters, digits, . _ + - (the first one a letter, a digit or _)"
# `expected` is what `usage` says in place of the regular expression.
Name = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=128, json_schema_extra={"expected": NAME})]


class Section(BaseModel):
    """Base of all sections: immutable, closed to unknown keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def with_defaults(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that `defaults` names, with its values where they are null."""
        return {key: default if getattr(self, key) is None else getattr(self, key) for key, default in defaults.items()}
