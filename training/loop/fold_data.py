"""The data of one fold, as the trainer takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.loading.loader import Loader
from data.streaming.order import StreamOrder
from training.policy.resizing import ResizeStage
from training.policy.targets import Targets


@dataclass(frozen=True)
class FoldData:
    """What one fold trains and validates on. Labels are int64 class numbers; `train_targets` gives the float32 rows
    of a batch, `train_weights` are float32 `[N]` the images' weights in the mean loss.

    `train` has a loader of the training images for each of the `stages`. `raise_to` maps a class to the count that it
    is raised to in each epoch; `corrupted` are damaged validation images; `stream_order` arranges an epoch's samples
    where shards are streamed.
    """

    stages: tuple[ResizeStage, ...]
    train: tuple[Loader, ...]
    train_labels: NDArray[np.int64]
    train_targets: Targets
    train_weights: NDArray[np.float32]
    valid: Loader
    valid_labels: NDArray[np.int64]
    valid_ids: list[str]
    raise_to: dict[int, int]
    corrupted: Loader | None = None
    stream_order: StreamOrder | None = None
