"""Second heads: a classifier of its own for two classes that an ensemble confuses, and what it does to an answer.

It is asked about an image only where one of the two is the ensemble's most probable class, and only shares out what the
two have together: the probabilities of other classes stay, and an image of another class is as right as before. How it
is fed stands in `pair_panel`, how its weight is found in `pair_fit`; `python -m training pair` trains it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from infer.member import Member


class Pair(BaseModel):
    """Two classes, the members that know these two alone, and their `weight` against the ensemble's own split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, str]
    weight: float = Field(default=1.0, gt=0, le=1)
    members: tuple[Member, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _usable(self) -> Pair:
        if self.classes[0] == self.classes[1]:
            raise ValueError(f"classes: {self.classes[0]!r} stands there twice; name two classes")
        if sum(member.weight for member in self.members) <= 0:
            raise ValueError("the weights of all members of a pair are 0")
        return self


def asked(probabilities: NDArray[np.floating], columns: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """int64 `[N]`: which of the pairs, each two columns of `[N, C]`, is asked about a row; -1 for none, and for NaN.

    It holds the most probable class; of several such pairs it is the one whose other class is the more probable.
    """
    top = probabilities.argmax(axis=1)
    which, most = np.full(len(top), -1, dtype=np.int64), np.full(len(top), -1.0)
    for number, (a, b) in enumerate(columns):
        other = np.where(top == a, probabilities[:, b], np.where(top == b, probabilities[:, a], -1.0))
        better = other > most
        which[better], most[better] = number, other[better]
    return which


def share(
    probabilities: NDArray[np.floating],
    columns: Sequence[int],
    said: NDArray[np.floating],
    weight: float | NDArray[np.floating],
    lowest: float = 0.0,
) -> None:
    """Share out in place what the two `columns` of `[n, C]` have together.

    The first one's part is the mean of its part so far and of `said` `[n]`, which counts `weight`, one for all or
    `[n]`; neither part is under `lowest`.
    """
    a, b = columns
    together = probabilities[:, a] + probabilities[:, b]
    part = (1 - weight) * probabilities[:, a] / together + weight * said
    part = np.clip(part, lowest, 1 - lowest)
    probabilities[:, a], probabilities[:, b] = together * part, together * (1 - part)
