"""The operations of augmentation as settings: names, parameters and their ranges, declared beside what they do."""

from __future__ import annotations

from typing import NamedTuple

from config import declared

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
