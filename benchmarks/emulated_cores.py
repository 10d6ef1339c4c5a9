"""What a loader would give on more cores than this machine has, by emulation: `benchmarks/loader.py --emulate_cores N`.

First the time of an image (level `moderate`, from the files, 224 pixels) is measured in one thread and split in two:
inside OpenCV's functions and reads of files, which let other threads have the interpreter, and the rest, which is
Python and holds it. Then N threads, and N processes, run the loader with an operation that takes no core at all: it
sleeps without the interpreter for the first part, and sleeps holding it for the second, in turns. So N of them run side
by side on few cores, and only the interpreter is scarce. What is real: the loader, its threads, processes, pipes and
shared memory. What is not emulated: cores that share caches, memory and power, and disks.

A thread beside the loader, in place of a training step, does a little Python every 2 ms; how long that takes, to what
it takes alone, says how much the loader disturbs it.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from config.data_sections import Augment
from data import augment
from data.decode import Pixels, Shrink, whole
from data.images import Images
from data.loader import Loader
from data.sampler import epoch_order
from data.samples import Preparation
from models.card import Preprocessing

_BATCH, _SIZE = 256, 224
_TURNS = 8  # of the two parts in an image
_EXACT_TIMERS = 29, 1  # PR_SET_TIMERSLACK, nanoseconds: Linux may else be 50 microseconds late
_libc: Any = ctypes.PyDLL(None)  # calls of which hold the interpreter


def measured(paths: list[Path], cores: int, seconds: float = 4.0) -> dict[str, Any]:
    """Images a second of so many threads and processes, and what they do to a thread beside them."""
    native, python = shares(paths)
    found: dict[str, Any] = {
        "native_ms": round(1000 * native, 3),
        "python_ms": round(1000 * python, 3),
        "interpreter_cap": round(1 / python),
    }
    operation = Emulated(native, python)
    with ticking() as ticks:
        time.sleep(seconds)
    alone = statistics.median(ticks)
    for name, processes in (("threads", 0), ("processes", cores)):
        loader = Loader([Path("x")] * 100_000, operation, _SIZE, _BATCH, cores, 0, Blank(), processes=processes)
        batches = loader.epoch(np.arange(100_000))
        for _ in range(4):
            next(batches)
        with ticking() as ticks:
            begun, count = time.perf_counter(), 0
            while (taken := time.perf_counter() - begun) < seconds:
                count += len(next(batches).index)
        batches.close()
        found[name] = {
            "images_per_second": round(count / taken),
            "step_slower": round(statistics.median(ticks) / alone, 2),
            "step_slower_p95": round(np.percentile(ticks, 95) / alone, 2),
            "ticks": len(ticks),
        }
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def shares(paths: list[Path], rounds: int = 3) -> tuple[float, float]:
    """CPU seconds of an image outside of the interpreter and in it, the best of some epochs in one thread."""
    transform = augment.train_transform(Augment(level="moderate"), Preprocessing(size=_SIZE))
    found = []
    for epoch in range(rounds):
        prepare, order = Preparation(Images(0), transform, 0, epoch), epoch_order(len(paths), 0, epoch).tolist()
        with native_time() as spent:
            begun = time.thread_time()
            for i in order:
                prepare(paths[i], i, 0)
            whole_time = time.thread_time() - begun
        found.append((sum(spent) / len(order), (whole_time - sum(spent)) / len(order)))
    return min(found, key=sum)


@contextmanager
def native_time() -> Iterator[list[float]]:
    """CPU seconds of each call, in this thread, that lets others have the interpreter."""
    spent: list[float] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            begun = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                spent.append(time.thread_time() - begun)

        return wrapped

    builtin = type(cv2.resize)
    held = {name: call for name, call in vars(cv2).items() if isinstance(call, builtin)}
    read = Path.read_bytes
    for name, call in held.items():
        setattr(cv2, name, timed(call))
    Path.read_bytes = timed(read)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        for name, call in held.items():
            setattr(cv2, name, call)
        Path.read_bytes = read  # type: ignore[method-assign]


@dataclass(frozen=True)
class Emulated:
    """A transform that takes `native` seconds without the interpreter and `python` seconds with it, and no core."""

    native: float
    python: float

    def __call__(self, image: Pixels, _rng: np.random.Generator) -> Pixels:
        exact_timers()
        for _ in range(_TURNS):
            _libc.usleep(round(1e6 * self.python / _TURNS))
            time.sleep(self.native / _TURNS)
        return image


class Blank:
    """A source of one image."""

    def __init__(self) -> None:
        self._image = np.zeros((_SIZE, _SIZE, 3), np.uint8)

    def __call__(self, _path: Path, _shrink: Shrink = whole) -> Pixels:
        return self._image

    def reader(self, _workers: int) -> Blank:
        """Itself."""
        return self

    def address(self, path: Path) -> str:
        """The path."""
        return str(path)


def exact_timers() -> None:
    """Have this thread's sleeps end when they should."""
    if sys.platform == "linux":
        _libc.prctl(*_EXACT_TIMERS)


@contextmanager
def ticking() -> Iterator[list[float]]:
    """The seconds of a little Python that a thread does every 2 ms."""
    ticks: list[float] = []
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            begun = time.perf_counter()
            for _ in range(20):
                sum(range(100))
                np.empty(1).fill(0)
            ticks.append(time.perf_counter() - begun)
            time.sleep(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ticks
    finally:
        ended.set()
        thread.join()
