"""What a loader would give on more cores than this machine has, by emulation: `benchmarks.loader --emulate_cores N`.

First the time of an image (level `moderate`, from the files, 224 pixels) is measured in one thread and split in two:
inside OpenCV's functions and reads of files, which let other threads have the interpreter, and the rest, which is
Python and holds it. Then N threads, and N processes, run the loader with an operation that sleeps for the first part
and holds the interpreter for the second. So N of them run side by side on few cores, and only interpreters are scarce.
What is real: the loader, its threads, processes, pipes and shared memory. What is not emulated: cores that share
caches, memory and power, and disks. Images a second are the best of some turns, as other jobs only slow them down.

A thread beside the loader, in place of a training step, makes 50 short calls every 10 ms, in each of which it lets
others have the interpreter, as calls of a framework do. How long they take, to what they take alone, says how much the
loader disturbs it; where other jobs keep all cores busy, these disturb it too. `loop_us` is CPU time of the loop that
takes the batches, for an image: with processes that is all that the parent's interpreter has to do.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from config.sections.data import Augment
from data.augment import transforms
from data.cache.images import Images
from data.decode.image import Shrink, whole
from data.loading.loader import Loaded, Loader
from data.loading.sampler import epoch_order
from data.loading.samples import Preparation
from data.pixels import Pixels
from models.card import Preprocessing

_BATCH, _SIZE, _TURN = 256, 224, 2.0
_TURNS = 12  # of the two parts in an image, as many as it has calls of OpenCV
_CALLS, _BLOCK = 50, 2**15  # of the thread beside the loader; bytes, of which a checksum takes about 10 microseconds
_EXACT_TIMERS = 29, 1  # PR_SET_TIMERSLACK, nanoseconds: Linux may else be 50 microseconds late
_libc: Any = ctypes.PyDLL(None)  # calls of which hold the interpreter


def measured(paths: list[Path], cores: int, turns: int) -> dict[str, Any]:
    """Images a second of so many threads and processes, and what they do to a thread beside them."""
    native, python = shares(paths)
    with ticking() as ticks:
        time.sleep(_TURN)
    alone = statistics.median(ticks)
    found: dict[str, Any] = {
        "native_ms": round(1000 * native, 3),
        "python_ms": round(1000 * python, 3),
        "interpreter_allows": round(1 / python),
        "step_ms": round(1000 * alone, 3),
    }
    for name, processes in (("threads", 0), ("processes", cores)):
        operation = Emulated(native, python, threads=not processes)
        loader = Loader([Path("x")] * 100_000, operation, _SIZE, _BATCH, cores, 0, Blank(), processes=processes)
        with closing(loader.epoch(np.arange(100_000))) as batches:
            sum(len(next(batches).index) for _ in range(4))
            rates, steps, loops = zip(*(turn(batches) for _ in range(turns)), strict=True)
        found[name] = {
            "images_per_second": round(max(rates)),
            "step_slower": round(statistics.median(steps) / alone, 2),
            "loop_us": round(1e6 * min(loops), 1),
        }
        print(f"{name}: images/s {[round(rate) for rate in rates]}", file=sys.stderr)
    return found


def turn(batches: Iterator[Loaded]) -> tuple[float, float, float]:
    """Images a second, the median seconds of a step beside the loader, and CPU seconds of the loop for an image."""
    with ticking() as ticks:
        begun, computed, count = time.perf_counter(), time.thread_time(), 0
        while (taken := time.perf_counter() - begun) < _TURN:
            count += len(next(batches).index)
        computed = time.thread_time() - computed
    return count / taken, statistics.median(ticks), computed / count


def shares(paths: list[Path], rounds: int = 3) -> tuple[float, float]:
    """CPU seconds of an image outside of the interpreter and in it, the best of some epochs in one thread."""
    transform = transforms.train_transform(Augment(level="moderate"), Preprocessing(size=_SIZE))
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
    """A transform that takes `native` seconds without the interpreter and `python` seconds with it.

    Of threads only one at a time has the interpreter, so that computes. Many processes have one each, more than there
    are cores, so these sleep; and since nobody in them waits for it, they need not let it go as often.
    """

    native: float
    python: float
    threads: bool

    def __call__(self, image: Pixels, _rng: np.random.Generator) -> Pixels:
        """The image as it is, later."""
        exact_timers()
        if not self.threads:
            _libc.usleep(round(1e6 * self.python))
            time.sleep(self.native)
            return image
        for _ in range(_TURNS):
            ends = time.perf_counter() + self.python / _TURNS
            while time.perf_counter() < ends:
                pass
            time.sleep(self.native / _TURNS)
        return image


class Blank:
    """A source of one image."""

    def __init__(self) -> None:
        self._image = np.zeros((_SIZE, _SIZE, 3), np.uint8)

    def __call__(self, _path: Path, _shrink: Shrink = whole) -> Pixels:
        """It."""
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
    """The seconds of a step of 50 short calls that a thread makes every 10 ms."""
    ticks: list[float] = []
    ended, block = threading.Event(), bytes(_BLOCK)

    def work() -> None:
        while not ended.is_set():
            begun = time.perf_counter()
            for _ in range(_CALLS):
                zlib.crc32(block)
            ticks.append(time.perf_counter() - begun)
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ticks
    finally:
        ended.set()
        thread.join()
