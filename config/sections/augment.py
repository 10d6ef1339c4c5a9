"""The settings about augmentation. Its operations are declared beside what they do, in `data/augment`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from config.sections import declared
from config.sections.base import CHECK, Section
from config.text import choices

PROB = "prob"
_FILES = ("documents", "geometry", "colour", "ops")  # of `data/augment`, in the order in which operations act


class Parameter(NamedTuple):
    """A parameter of an operation: what it limits, and the values it takes."""

    description: str
    minimum: float
    maximum: float


class Operation(NamedTuple):
    """What an operation does, and how often and how strongly it acts where it is switched on and the level has none of
    it. Each also takes `prob`; parameters are upper limits of what is drawn."""

    description: str
    parameters: dict[str, Parameter]
    probability: float
    strength: float


PROBABILITY = Parameter("probability that the operation acts on an image", 0, 1)
OPERATIONS = {
    name: Operation(text, {key: Parameter(*row) for key, row in parameters.items()}, probability, strength)
    for file in _FILES
    for name, (text, parameters, probability, strength) in declared.literal(
        f"data/augment/{file}.py", "OPERATIONS"
    ).items()
}


def _checked(ops: Any) -> Any:
    """Operations with numbers and truth values in place of text, and without null, which is the level's own."""
    if not isinstance(ops, Mapping):
        return ops
    checked = {name: _operation(name, value) for name, value in ops.items()}
    return {name: value for name, value in checked.items() if value is not None}


Ops = Annotated[dict[str, bool | dict[str, float]], BeforeValidator(_checked)]


def _operation(name: str, value: Any) -> bool | dict[str, float] | None:
    if name not in OPERATIONS:
        raise _fault(name, f"an operation in place of {name}{choices(name, OPERATIONS)}")
    parameters = {PROB: PROBABILITY, **OPERATIONS[name].parameters}
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: _number(name, key, number, parameters) for key, number in value.items()}
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError as error:
        mapping = ", ".join(f"{parameter}: ..." for parameter in parameters)
        raise _fault(name, f"{name} with true, false, null or {{{mapping}}}") from error


def _number(name: str, key: str, value: Any, parameters: Mapping[str, Parameter]) -> float:
    if key not in parameters:
        raise _fault(name, f"a parameter of {name} in place of {key}{choices(key, parameters)}")
    description, minimum, maximum = parameters[key]
    try:
        number = TypeAdapter(float).validate_python(value)
    except ValidationError:
        number = float("nan")
    if not minimum <= number <= maximum:
        raise _fault(name, f"{name}.{key} from {minimum:g} to {maximum:g} ({description})")
    return number


def _fault(name: str, expected: str) -> PydanticCustomError:
    return PydanticCustomError(CHECK, "{expected}", {"expected": expected, "entry": name})


class Augment(Section):
    """Random changes to the training images: a level, and `ops` that differ from it."""

    level: Literal["none", "minimal", "moderate", "hard"] = Field(
        default="moderate",
        description="How strongly the training images are changed: which operations act, and how much.",
    )
    hflip: bool = Field(
        default=True, description="Mirror left to right half of the time, not at level none; not for text or digits."
    )
    vflip: bool = Field(default=False, description="Mirror top to bottom half of the time, not at level none.")
    min_scale: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Smallest share of the area that a random crop sees or a letterboxed image fills; null as the level"
        " says.",
    )
    policy: Literal["none", "rand", "trivial", "three"] = Field(
        default="none",
        description="A published policy in place of the level's operations (random_erasing and those in `ops` still"
        " act): RandAugment, TrivialAugment or 3-Augment.",
    )
    operations: int = Field(default=2, ge=1, le=15, description="Operations on an image (rand).")
    magnitude: float = Field(default=9.0, ge=0, le=10, description="Mean magnitude (rand).")
    magnitude_std: float = Field(default=0.5, ge=0, description="Standard deviation of the magnitude (rand).")
    ramp: Literal["constant", "up", "down"] = Field(
        default="constant", description="Whether the strength stays, grows or shrinks over the epochs."
    )
    off_epochs: int = Field(
        default=0, ge=0, description="Number of last epochs that see the images as evaluation does."
    )
    ops: Ops = Field(
        default={},
        description="Operations that differ from the level's, such as {rotate: {prob: 0.5, degrees: 15}, hue: false}:"
        " true has the level's or the standard strength, false switches one off, null is the level's again. There are"
        f" {', '.join(OPERATIONS)}; docs/reference/augmentation.md lists their parameters.",
    )
