"""Reports a run to TensorBoard, Weights & Biases and MLflow. `progress` writes the run's own files.

Each tracker follows `history.jsonl` in a thread of its own, from where it stopped: a resumed run continues as the same
run there, nothing is sent twice, and a service that is slow or down costs one line and no training.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backends import installed
from config.errors import BackendUnavailable
from config.sections.train import Track

# The package of each tracker; its extra has the tracker's name, its module is `to_NAME`.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


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

    `state` are plain values that it gets back when the same run is opened again; `rewinds` says whether an epoch may be
    sent again, which replaces it.
    """

    state: dict[str, Any]
    rewinds: bool

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """One epoch's figures; numbers only grow, but where the tracker rewinds."""

    def picture(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image uint8 `[H, W, 3]` RGB."""

    def close(self) -> None:
        """Flush, and end this part of the run."""


# (title, the `Tracker.state` of the run's last start) to the open run
Opener = Callable[[Title, dict[str, Any]], Tracker]


def require(track: Track) -> None:
    """`BackendUnavailable`, naming the install command, when a tracker that is switched on is not installed."""
    missing = [name for name in chosen(track) if not installed(PACKAGES[name])]
    if missing:
        raise BackendUnavailable(
            f"track.{missing[0]}: {PACKAGES[missing[0]]} is not installed; run: "
            f'pip install -e ".[{",".join(missing)}]", or set it to false'
        )


def chosen(track: Track) -> list[str]:
    """The names of the trackers that are switched on."""
    return [name for name in PACKAGES if getattr(track, name)]


def opener(name: str) -> Opener:
    """What opens a run in the tracker `name`; its package is imported by the call, not here."""
    return lambda title, state: importlib.import_module(f"training.trackers.to_{name}").open(title, state)
