"""Updates that are taken back: whether a batch fits into the device's memory, and how long an update takes."""

from __future__ import annotations

import time

import numpy as np

from backends.contract import Batch, Session, StepHyperparams


def rehearse(session: Session, batch: int, size: int, classes: int, updates: int = 1) -> list[float]:
    """The seconds of each of some updates with `batch` empty images of `size` pixels; the session is as before then."""
    before = session.state()
    targets = np.full((batch, classes), 1 / classes, np.float32)
    empty = Batch(np.zeros((batch, size, size, 3), np.uint8), targets, np.ones(batch, np.float32))
    knobs = StepHyperparams(lr=0.0, weight_decay=0.0, ema_decay=0.0, clip_norm=1.0)
    taken = []
    for _ in range(updates):
        start = time.perf_counter()
        session.read(session.train_step(empty, None, knobs))
        taken.append(time.perf_counter() - start)
    session.load(before)
    return taken
