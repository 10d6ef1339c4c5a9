"""A fold's session, compiled where the settings say so or where a short trial shows that it pays.

What pays is decided in `policy.compiling`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from backends.contract import Batch, CompileMode, Knobs, Session
from config.errors import ConfigError
from config.train_sections import Train
from training.policy import compiling

# Given whether to compile, or torch's mode of it.
Open = Callable[[bool | CompileMode], Session]
_WARM, _TIMED = 2, 3  # updates of a trial


@dataclass(frozen=True)
class Course:
    """What a training has before it: updates with `batch` images of `size` pixels and so many classes."""

    updates: int
    batch: int
    size: int
    classes: int


def session(
    open: Open, engine: str, train: Train, course: Course | None, say: Callable[[str], None] = print
) -> Session:
    """The session that `open` gives, compiled as `train` says; without a `course` nothing is to be trained.

    Raises `ConfigError` where the settings insist on what the engine cannot do.
    """
    if train.compile == "off":
        return open(False)
    named = train.compile_mode if engine == "torch" else True
    if train.compile == "on":
        return _insisted(open(named), engine)
    if engine != "torch":
        return open(True)
    eager = open(False)
    if course is None or not eager.describe()["compiles"] or not _pays(eager, course, say):
        return eager
    eager.close()
    return open(named)


def _insisted(opened: Session, engine: str) -> Session:
    if not opened.describe()["compiled"]:
        opened.close()
        raise ConfigError(f"train.compile on: the {engine} engine does not compile on this device; set it to auto")
    return opened


def _pays(eager: Session, course: Course, say: Callable[[str], None]) -> bool:
    try:
        seconds, tensors = trial(eager, course)
    except BaseException:
        eager.close()
        raise
    pays = compiling.pays(course.updates, seconds, tensors)
    if not pays:
        say(
            f"not compiled: {course.updates} updates of {seconds:.2g} s each are done before the "
            f"{compiling.cost(tensors):.0f} s that compiling takes would pay; train.compile on does it anyway"
        )
    return pays


def trial(eager: Session, course: Course) -> tuple[float, int]:
    """Seconds of an update with empty images, all updates taken back afterwards, and the tensors of the network."""
    before = eager.state()
    images = np.zeros((course.batch, course.size, course.size, 3), np.uint8)
    targets = np.full((course.batch, course.classes), 1 / course.classes, np.float32)
    batch = Batch(images, targets, np.ones(course.batch, np.float32))
    knobs = Knobs(lr=0.0, weight_decay=0.0, ema_decay=0.0, clip_norm=1.0)
    taken = []
    for _ in range(_WARM + _TIMED):
        start = time.perf_counter()
        eager.read(eager.train_step(batch, None, knobs))
        taken.append(time.perf_counter() - start)
    eager.load(before)
    return min(taken[_WARM:]), len(before.weights)
