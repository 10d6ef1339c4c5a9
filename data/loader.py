"""From an order of samples to batches of fixed shape, prepared ahead by threads. The order itself is `data.sampler`.

The same (paths, transform, seed, order, epoch) gives the same batches for any number of workers and from any batch on.
A sample that stands several times in an order is augmented differently each time.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from data import keyed
from data.cores import cores
from data.decode import Pixels
from data.images import Images, Source
from data.sampler import occurrences

Transform = Callable[[Pixels, np.random.Generator], Pixels]
# Each batch is shared out among all workers, so this many batches ahead is a depth of 2 x workers.
_AHEAD = 2


@dataclass(frozen=True)
class ByEpoch:
    """A transform that changes over the training: `at(epoch)` is that of one epoch, and a pure function of it."""

    at: Callable[[int], Transform]


class Loaded(NamedTuple):
    """One batch: images uint8 `[B, S, S, 3]` RGB, index int64 `[B]`, weight float32 `[B]`.

    A short last batch is padded by repeating its own samples with weight 0; so is the place of an image that was left
    out as unreadable, which keeps its index. A batch is the consumer's for as long as
    it, or any array or tensor that shares its memory, is alive; the memory is reused afterwards.
    """

    images: Pixels
    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    weight: NDArray[np.float32]


class Loader:
    """Decodes, transforms and stacks images in threads of its own.

    `transform(image, rng)` gets a decoded image (read-only) and a generator keyed by (seed, epoch, sample, how often it
    stood before in the order), and returns uint8 `[size, size, 3]`; those of `data.augment` fit, for training and for
    evaluation. With `skip_bad`, an image that cannot be read is left out of its batch, and `bad` says why, by its path.
    Where it has a method `shrink(height, width, new_rng)`, a JPEG is decoded so many times smaller for it (see
    `decode`); `new_rng()` is such a generator. A `ByEpoch` gives each epoch its own. `workers=0` is one thread for each
    core, which is the most that a source of `data.cache` gets. Pass one `Images` to several loaders to decode a small
    set only once among them, or such a source.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        transform: Transform | ByEpoch,
        size: int,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        images: Source | None = None,
        skip_bad: bool = False,
    ):
        self.paths = list(paths)
        self.batch_size = batch_size
        self._images = images or Images()
        self._at = transform.at if isinstance(transform, ByEpoch) else lambda _epoch: transform
        self._workers = workers or cores()
        if getattr(images, "mapped", False):  # more threads would only take the interpreter from each other
            self._workers = min(self._workers, cores())
        self._seed = seed
        self.bad: dict[Path, str] = {}
        self._skip_bad = skip_bad
        self._buffers = _Buffers((batch_size, size, size, 3))

    def batches(self, samples: int) -> int:
        """How many batches an order of `samples` makes."""
        return -(-samples // self.batch_size)

    def epoch(self, order: NDArray[np.int64], epoch: int = 0, first_batch: int = 0) -> Iterator[Loaded]:
        """The batches of `order` (int64 positions in the paths) from `first_batch` on, in order.

        An error of a thread is raised here, with the name of the image's file. The threads end with the iterator:
        when it is used up, closed, dropped, or has raised.
        """
        order = np.asarray(order, dtype=np.int64)
        seen, bad = occurrences(order), self.bad if self._skip_bad else None
        work = _Epoch(self.paths, self._images, self._at(epoch), self._seed, epoch, order, seen, bad)
        numbers = iter(range(first_batch, self.batches(len(order))))
        with ThreadPoolExecutor(self._workers, thread_name_prefix="tandem-loader") as pool:
            ahead = deque(self._start(pool, work, n) for n in itertools.islice(numbers, _AHEAD))
            try:
                while ahead:
                    batch, parts = ahead.popleft()
                    ahead.extend(self._start(pool, work, n) for n in itertools.islice(numbers, 1))
                    for part in parts:
                        part.result()
                    yield _pad(_cover(batch, self.bad))
                    del batch  # so that its memory is free as soon as the consumer lets go
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, work: _Epoch, number: int) -> tuple[Loaded, list[Future[None]]]:
        first = number * self.batch_size
        mine = work.order[first : first + self.batch_size]
        images = self._buffers.take()
        shares = np.array_split(np.arange(len(mine)), min(self._workers, len(mine)))
        batch = Loaded(images, mine, np.ones(len(mine), dtype=np.float32))
        return batch, [pool.submit(work.fill, batch, first, share) for share in shares]


@dataclass(frozen=True)
class _Epoch:
    """What the threads share: it prepares the image of any place in one epoch's order."""

    paths: list[Path]
    images: Source
    transform: Transform
    seed: int
    epoch: int
    order: NDArray[np.int64]
    seen: NDArray[np.int64]
    bad: dict[Path, str] | None

    def fill(self, batch: Loaded, first: int, slots: NDArray[np.int64]) -> None:
        """Fill the `slots` of a batch that starts at place `first` of the order; weight 0 where the image is bad."""
        for slot in slots.tolist():
            sample, seen = int(self.order[first + slot]), int(self.seen[first + slot])
            try:
                image = self.images(self.paths[sample], functools.partial(self._shrink, sample, seen))
                batch.images[slot] = self.transform(image, self._rng(sample, seen))
            except DataError as error:
                if self.bad is None:
                    raise
                self.bad[self.paths[sample]] = str(error)
                batch.weight[slot] = 0
            except Exception as error:
                error.add_note(f"while preparing {self.paths[sample]}")
                raise

    def _rng(self, sample: int, seen: int) -> np.random.Generator:
        return keyed.rng(self.seed, "augment", self.epoch, sample, seen)

    def _shrink(self, sample: int, seen: int, height: int, width: int) -> int:
        """What the transform will leave of the image with the same random numbers."""
        shrink = getattr(self.transform, "shrink", None)
        return shrink(height, width, functools.partial(self._rng, sample, seen)) if shrink else 1


def _cover(batch: Loaded, bad: dict[Path, str]) -> Loaded:
    """Put good images of the batch in the places of bad ones, which then do no harm to any statistics."""
    good, gaps = np.flatnonzero(batch.weight > 0), np.flatnonzero(batch.weight == 0)
    if not len(good):
        raise DataError(f"a whole batch of {len(batch.weight)} images cannot be read; the last: {[*bad.values()][-1]}")
    batch.images[gaps] = batch.images[good[np.arange(len(gaps)) % len(good)]]
    return batch


def _pad(batch: Loaded) -> Loaded:
    size, real = len(batch.images), len(batch.index)
    if real == size:
        return batch
    repeat = np.arange(size) % real
    batch.images[real:] = batch.images[repeat[real:]]
    weight = np.zeros(size, dtype=np.float32)
    weight[:real] = batch.weight
    return Loaded(batch.images, batch.index[repeat], weight)


class _Buffers:
    """Batch memory that comes back by itself once no array shares it any more."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._free: deque[bytearray] = deque()

    def take(self) -> Pixels:
        try:
            memory = self._free.pop()
        except IndexError:
            memory = bytearray(int(np.prod(self._shape)))
        # Every view keeps this array alive, since its own base is no array: its end is the end of all use.
        array = np.frombuffer(memory, dtype=np.uint8)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(self._shape)
