"""Updates on trial: whether a batch fits into the device's memory, and how long an update takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.contract import Batch, Session, StepHyperparams
from training.loop import memory


@dataclass(frozen=True)
class Ahead:
    """What is left to train: updates with `batch` images of `size` pixels in a process, and the number of classes. The
    fold's `folder` gets the results of trials."""

    updates: int
    batch: int
    size: int
    classes: int
    folder: Path


def rehearse(session: Session, ahead: Ahead, updates: int = 1) -> list[float]:
    """The seconds of each of some updates with empty images; the session's state is restored afterwards.

    Raises `OutOfMemory` where they do not fit, or take more than the device recommends.
    """
    before = session.state()
    targets = np.full((ahead.batch, ahead.classes), 1 / ahead.classes, np.float32)
    images = np.zeros((ahead.batch, ahead.size, ahead.size, 3), np.uint8)
    empty = Batch(images, targets, np.ones(ahead.batch, np.float32))
    knobs = StepHyperparams(lr=0.0, weight_decay=0.0, ema_decay=0.0, clip_norm=1.0)
    taken = []
    for _ in range(updates):
        start = time.perf_counter()
        session.read(session.train_step(empty, None, knobs))
        taken.append(time.perf_counter() - start)
    session.load(before)
    memory.check_limit(session.describe())
    return taken
