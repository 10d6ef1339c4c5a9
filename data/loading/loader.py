"""From an order of samples to batches of fixed shape, prepared ahead by threads or by worker processes.

The same (paths, transform, seed, order, epoch) gives the same batches for any number of either and from any batch on. A
sample that stands several times in an order is augmented differently each time. The order itself is in `sampler`, the
processes are in `processes`, and `pace` decides whether threads or processes prepare a batch.
"""

from __future__ import annotations

import functools
import itertools
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from config.text import counted
from data.cache.images import Images, Shared, Source
from data.cores import cores
from data.loading.pace import Pace
from data.loading.processes import Pending, Row, Workers
from data.loading.sampler import occurrences
from data.loading.samples import ByEpoch, Preparation, Transform, at_epoch
from data.pixels import Pixels
from data.streaming import shard_cache
from data.streaming.read_ahead import ReadAhead, RemoteShards

# Each batch is shared out among all workers, so this many batches ahead is a depth of 2 x workers.
_AHEAD = 2


class Loaded(NamedTuple):
    """One batch: images uint8 `[B, S, S, 3]` RGB, index int64 `[B]`, weight float32 `[B]`.

    A short last batch is padded by repeating its own samples with weight 0; so is the slot of an image that was left
    out as unreadable, which keeps its index. A batch is the consumer's for as long as it, or any array or tensor that
    shares its memory, is alive; the memory is reused afterwards.
    """

    images: Pixels
    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    weight: NDArray[np.float32]


class Loader:
    """Decodes, transforms and stacks images in threads of its own, or in worker processes.

    `transform(image, rng)` gets a decoded image (read-only) and a generator keyed by (seed, epoch, sample, how often it
    stood before in the order), and returns uint8 `[size, size, 3]`; those of `data.augment` fit, for training and for
    evaluation. With `skip_bad`, an image that cannot be read is left out of its batch, and `bad` says why, by its path.
    Where it has a method `shrink(height, width, new_rng)`, a JPEG is decoded so many times smaller for it (see
    `decode`); `new_rng()` is such a generator. A `ByEpoch` gives each epoch its own. `workers=0` is one thread for each
    core, which is the most that a source of `data.cache` gets. Pass one `Images` to several loaders to decode a small
    set only once among them, or such a source.

    With `processes`, that many worker processes replace the threads. They start now, are shared by all loaders with as
    many, and end with the last of these; `transform` must be picklable, the source a `data.cache.images.Shared`. `auto`
    starts with threads and changes to processes where `data.loading.pace` finds that these are faster.

    Shards of a URL are fetched ahead as an epoch's order needs them, at most `shard_bytes` of them at one time.

    With `rank` (rank, world size) only that rank's rows of each batch are prepared, as they are in the full batch; the
    world size divides the batch, and orders make full batches.
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
        processes: int | Literal["auto"] = 0,
        shard_bytes: int = shard_cache.LIMIT,
        rank: tuple[int, int] = (0, 1),
    ):
        self.paths = list(paths)
        self._shards = RemoteShards(self.paths, shard_bytes)
        self.batch_size = batch_size
        self._rank = rank
        self._local = batch_size // rank[1]
        self._offset = rank[0] * self._local
        self.bad: dict[Path, str] = {}
        self._images = images or Images()
        self._transform, self._seed, self._skip_bad = transform, seed, skip_bad
        self._threads = workers or cores()
        if getattr(images, "mapped", False):  # more threads would only take the interpreter from each other
            self._threads = min(self._threads, cores())
        self._shape = (self._local, size, size, 3)
        self._buffers = _Buffers(self._shape)
        self._pace = Pace(processes, workers)
        self._job: tuple[Workers, tuple[int, int]] | None = None
        self._processes()

    def batches(self, samples: int) -> int:
        """How many batches an order of `samples` makes."""
        return -(-samples // self.batch_size)

    def epoch(self, order: NDArray[np.int64], epoch: int = 0, first_batch: int = 0) -> Iterator[Loaded]:
        """The batches of `order` (int64 positions in the paths) from `first_batch` on, in order.

        An error of a thread or a process is raised here, with the name of the image's file. Threads end with the
        iterator: when it is used up, closed, dropped, or has raised.
        """
        order = np.asarray(order, dtype=np.int64)
        prepare = Preparation(self._images, at_epoch(self._transform, epoch), self._seed, epoch)
        work = _Epoch(self.paths, order, occurrences(order), prepare, self.bad if self._skip_bad else None)
        numbers = iter(range(first_batch, self.batches(len(order))))
        shards = self._shards.read_ahead(order, first_batch, self.batch_size, *self._rank)
        with shards, ThreadPoolExecutor(self._threads, thread_name_prefix="tandem-loader") as pool:
            start = functools.partial(self._start, pool, work, shards)
            ahead = deque(map(start, itertools.islice(numbers, _AHEAD)))
            try:
                yielded, done = None, first_batch
                while ahead:
                    first = ahead.popleft()
                    ahead.extend(map(start, itertools.islice(numbers, 1)))
                    asked = time.perf_counter()
                    batch = first.finish()
                    done += 1
                    shards.used(done * self.batch_size)
                    yielded = self._pace.note(asked, yielded, len(batch.index))
                    del first
                    yield _pad(_cover(batch, self.bad))
                    del batch  # so that its memory is free as soon as the consumer lets go
            finally:
                for left in ahead:
                    left.cancel()
                pool.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, pool: ThreadPoolExecutor, work: _Epoch, shards: ReadAhead, number: int
    ) -> _InThreads | _InProcesses:
        first = number * self.batch_size + self._offset
        mine = work.order[first : first + self._local]
        shards.wait(first + len(mine))
        registered = self._processes()
        if registered is not None:
            workers, job = registered
            pending = workers.start(job, self._shape, work.prepare.epoch, work.rows(first, len(mine)))
            return _InProcesses(work, mine, workers, pending)
        batch = Loaded(self._buffers.take(), mine, np.ones(len(mine), dtype=np.float32))
        shares = np.array_split(np.arange(len(mine)), min(self._threads, len(mine)))
        return _InThreads(batch, [pool.submit(work.fill, batch, first, share) for share in shares])

    def _processes(self) -> tuple[Workers, tuple[int, int]] | None:
        """The processes that prepare the next batch and this loader's job in them; None where threads prepare it."""
        workers = self._pace.workers()
        if workers is None:
            return None
        if self._job is None or self._job[0] is not workers:
            job = workers.register(self._transform, self._shape, self._seed, self._skip_bad, self._images)
            self._job = workers, job
        return self._job


@dataclass(frozen=True)
class _Epoch:
    """What the threads share: it prepares the image of any position in one epoch's order."""

    paths: list[Path]
    order: NDArray[np.int64]
    repeats: NDArray[np.int64]
    prepare: Preparation
    bad: dict[Path, str] | None

    def fill(self, batch: Loaded, first: int, slots: NDArray[np.int64]) -> None:
        """Fill the `slots` of a batch that starts at position `first` of the order; weight 0 where the image is bad."""
        for slot in slots.tolist():
            sample, repeat = int(self.order[first + slot]), int(self.repeats[first + slot])
            try:
                batch.images[slot] = self.prepare(self.paths[sample], sample, repeat)
            except DataError as error:
                if self.bad is None:
                    raise
                self.bad[self.paths[sample]] = str(error)
                batch.weight[slot] = 0
            except Exception as error:
                error.add_note(f"while preparing {self.paths[sample]}")
                raise

    def rows(self, first: int, count: int) -> list[Row]:
        """The same as tasks of worker processes."""
        source, samples = cast(Shared, self.prepare.source), self.order[first : first + count].tolist()
        repeats = self.repeats[first : first + count].tolist()
        return [(i, samples[i], repeats[i], source.address(self.paths[samples[i]])) for i in range(count)]


class _InThreads(NamedTuple):
    """A batch that threads prepare."""

    batch: Loaded
    futures: list[Future[None]]

    def finish(self) -> Loaded:
        """Wait for it."""
        for future in self.futures:
            future.result()
        return self.batch

    def cancel(self) -> None:
        """Begin no more of it."""
        for future in self.futures:
            future.cancel()


class _InProcesses(NamedTuple):
    """A batch that worker processes prepare."""

    work: _Epoch
    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, as in Loaded
    workers: Workers
    pending: Pending

    def finish(self) -> Loaded:
        """Wait for it."""
        self.workers.wait(self.pending)
        paths = [self.work.paths[i] for i in self.index]
        if self.pending.failed:
            slot, error = min(self.pending.failed.items())
            if not isinstance(error, DataError):
                error.add_note(f"while preparing {paths[slot]}")
            raise error
        weight = np.ones(len(self.index), dtype=np.float32)
        for slot, fault in sorted(self.pending.bad.items()):
            weight[slot] = 0
            if self.work.bad is not None:
                self.work.bad[paths[slot]] = fault
        return Loaded(self.pending.pixels, self.index, weight)

    def cancel(self) -> None:
        """Begin no more of it."""
        self.pending.cancel()


def _cover(batch: Loaded, bad: dict[Path, str]) -> Loaded:
    """Put good images of the batch in the places of bad ones, which then do no harm to any statistics."""
    good, gaps = np.flatnonzero(batch.weight > 0), np.flatnonzero(batch.weight == 0)
    if not len(good):
        raise DataError(
            f"a whole batch of {counted(len(batch.weight), 'image')} cannot be read; the last: {[*bad.values()][-1]}"
        )
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
