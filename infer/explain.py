"""Why an ensemble says what it says of one image: each member's probabilities, the views they saw, how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.decode import Pixels, decode
from infer import views
from infer.runner import Runner
from infer.summary import UNSURE


@dataclass(frozen=True, eq=False)
class Explanation:
    """Of one image: float32 `[C]` of the ensemble and of each member by name, and each view, uint8 `[S, S, 3]`."""

    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    members: dict[str, NDArray[np.float32]]
    views: dict[str, Pixels]

    @property
    def label(self) -> str:
        """The class of the greatest probability."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def margin(self) -> float:
        """The difference of the two greatest probabilities; 1 for a single class."""
        top = np.sort(self.probabilities)[-2:]
        return float(top[-1] - top[0]) if len(top) == 2 else 1.0

    @property
    def agreeing(self) -> int:
        """How many members alone choose the ensemble's class."""
        return sum(int(rows.argmax() == self.probabilities.argmax()) for rows in self.members.values())

    def certainty(self) -> str:
        """How sure it is, in words."""
        best = float(self.probabilities.max())
        word = "unsure" if best < UNSURE else "sure"
        return (
            f"{word}: {self.label} with {best:.1%}, {self.margin:.1%} before the next; "
            f"{self.agreeing} of {len(self.members)} members agree"
        )

    def as_json(self) -> dict[str, object]:
        """What `POST /predict` answers."""
        return {
            "label": self.label,
            "confidence": float(self.probabilities.max()),
            "margin": self.margin,
            "probabilities": _named(self.class_names, self.probabilities),
            "members": {name: _named(self.class_names, rows) for name, rows in self.members.items()},
            "views": list(self.views),
        }


def explain(runner: Runner, data: bytes, pixel_limit: int) -> Explanation:
    """Answer one encoded image; `DataError` when it cannot be read or has more than `pixel_limit` pixels."""
    image = decode(data, pixel_limit)
    probabilities = runner.predict([image]).probabilities[0]
    alone = {one.name: one.predict([image]).probabilities[0] for one in runner.members()}
    shown = runner.pixels(image)[None]
    seen = {view: views.apply(view, shown)[0] for view in runner.ensemble.views}
    return Explanation(runner.class_names, probabilities, alone, seen)


def _named(names: tuple[str, ...], values: NDArray[np.float32]) -> dict[str, float]:
    return {name: float(f"{value:.9g}") for name, value in zip(names, values, strict=True)}
