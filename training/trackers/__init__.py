"""Telling a run to TensorBoard, Weights & Biases and MLflow. What the run itself writes is in `progress`.

Each tracker follows `history.jsonl` in a thread of its own, from where it stood: a run that is resumed goes on as the
same run there, what was told is not told twice, and a service that is slow or gone costs one line and no training.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from config.errors import BackendUnavailable
from config.sections.train import Track


class Kind(NamedTuple):
    """A tracker: the package that it needs, and the extra that installs it. Its module is `to_NAME`."""

    package: str
    extra: str


KINDS = {
    "tensorboard": Kind("tensorboardX", "tensorboard"),
    "wandb": Kind("wandb", "wandb"),
    "mlflow": Kind("mlflow", "mlflow"),
}


@dataclass(frozen=True)
class Title:
    """How a run is called in a tracker. `name` is unique among the runs in `home`, the folder that collects them.

    `group` brings the folds of one run together; `folder` is the tracked run's own; `settings` are plain values.
    """

    name: str
    group: str
    project: str
    home: Path
    folder: Path
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """One open run of a tracker. It may raise anything: `feed` stands between it and the training.

    `state` are plain values that it wants back when the same run is opened again; `rewinds` says whether epochs that
    were told may be told anew, which replaces them.
    """

    state: dict[str, Any]
    rewinds: bool

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """One epoch's figures; numbers only grow, but where the tracker rewinds."""

    def picture(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image uint8 `[H, W, 3]` RGB."""

    def close(self) -> None:
        """Hand over what is held back, and end this part of the run."""


# (title, what `Tracker.state` was when the run was last told of) to the open run
Opener = Callable[[Title, dict[str, Any]], Tracker]


def require(track: Track) -> None:
    """`BackendUnavailable`, naming the install command, when a tracker that is switched on is not installed."""
    missing = [name for name in chosen(track) if importlib.util.find_spec(KINDS[name].package) is None]
    if missing:
        extras = ",".join(KINDS[name].extra for name in missing)
        raise BackendUnavailable(
            f"track.{missing[0]}: {KINDS[missing[0]].package} is not installed; run: "
            f'pip install -e ".[{extras}]", or set it to false'
        )


def chosen(track: Track) -> list[str]:
    """The names of the trackers that are switched on."""
    return [name for name in KINDS if getattr(track, name)]


def opener(name: str) -> Opener:
    """What opens a run in the tracker `name`; its package is imported by the call, not here."""

    def begin(title: Title, state: dict[str, Any]) -> Tracker:
        tracker: Tracker = importlib.import_module(f"training.trackers.to_{name}").open(title, state)
        return tracker

    return begin
