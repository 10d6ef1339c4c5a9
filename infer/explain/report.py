"""Explains the prediction of one image: the probabilities of each member, the views, and Grad-CAM heat maps."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from data.cache.images import Picture
from data.pixels import Pixels
from ensemble import views
from ensemble.member import Member
from infer.explain import gradcam
from infer.io.inputs import Inputs
from infer.io.summary import UNSURE
from infer.runner import Runner

_explainer = functools.lru_cache(maxsize=8)(gradcam.open)


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image: the chosen class, float32 `[C]` of the ensemble and of each member by name, and each view, uint8
    `[S, S, 3]`."""

    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    members: dict[str, NDArray[np.float32]]
    views: dict[str, Pixels]
    choice: int

    @property
    def label(self) -> str:
        """The name of the chosen class."""
        return self.class_names[self.choice]

    @property
    def margin(self) -> float:
        """The difference of the two greatest probabilities; 1 for a single class."""
        top = np.sort(self.probabilities)[-2:]
        return float(top[-1] - top[0]) if len(top) == 2 else 1.0

    @property
    def agreeing(self) -> int:
        """How many members choose the ensemble's class."""
        return sum(int(rows.argmax() == self.choice) for rows in self.members.values())

    def certainty(self) -> str:
        """The confidence, in words."""
        best = float(self.probabilities[self.choice])
        word = "unsure" if best < UNSURE else "sure"
        return (
            f"{word}: {self.label} with {best:.1%}, {self.margin:.1%} before the next; "
            f"{self.agreeing} of {len(self.members)} members agree"
        )

    def as_json(self) -> dict[str, object]:
        """The response of `POST /predict`."""
        return {
            "label": self.label,
            "confidence": float(self.probabilities[self.choice]),
            "margin": self.margin,
            "probabilities": _named(self.class_names, self.probabilities),
            "members": {name: _named(self.class_names, rows) for name, rows in self.members.items()},
            "views": list(self.views),
            "summary": self.certainty(),
        }


def explain(runner: Runner, data: bytes, pixel_limit: int) -> Explanation:
    """Predict one encoded image; `DataError` when it cannot be read or has more than `pixel_limit` pixels."""
    image = Picture(data, pixel_limit)
    inputs = Inputs(["0"], lambda _: image)
    probabilities = runner.predict_inputs(inputs).probabilities[0]
    alone = {member.name: member.predict_inputs(inputs).probabilities[0] for member in runner.members()}
    shown = runner.pixels(image)[None]
    shown_views = {view: views.apply(view, shown)[0] for view in runner.ensemble.views}
    choice = int(runner.finish.labels(probabilities[None])[0])
    return Explanation(runner.class_names, probabilities, alone, shown_views, choice)


def gradcam_overlays(runner: Runner, data: bytes, pixel_limit: int, label: str) -> dict[str, Pixels]:
    """Grad-CAM of each member for the class `label` of an encoded image: uint8 `[S, S, 3]` with the heat map over it.

    By the members' names; one that has no Grad-CAM (an artefact without gradients, an image too small) is left out.
    """
    image, number = Picture(data, pixel_limit), runner.class_names.index(label)
    heatmaps = {}
    for member, alone in zip(runner.ensemble.members, runner.members(), strict=True):
        shown = alone.pixels(image)
        try:
            heat = runner.in_thread(functools.partial(_heatmap, member, shown, number))
        except ConfigError:
            continue
        heatmaps[alone.name] = gradcam.overlay(shown, heat)
    return heatmaps


def _heatmap(member: Member, shown: Pixels, number: int) -> NDArray[np.float32]:
    return _explainer(member.path, member.runtime).heatmaps(shown[None], [number])[0]


def _named(names: tuple[str, ...], values: NDArray[np.float32]) -> dict[str, float]:
    return {name: float(f"{value:.9g}") for name, value in zip(names, values, strict=True)}
