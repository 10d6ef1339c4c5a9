"""From inputs to batches of pixels, prepared ahead by threads: each image is read and decoded once, whatever the number
of members, and resized once for each distinct preprocessing.

Image n is always at position n % size of batch n // size, whatever else is read, skipped or unreadable. So the same
images give the same batches for every number of threads, after a restart, and in every shard.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from data import names
from data.augment.transforms import EvalTransform
from data.cache.images import Picture
from data.cores import cores
from data.pixels import Pixels
from infer.io.inputs import Inputs, Pictured, Source
from models.card import Preprocessing

AHEAD = 2  # batches that are prepared while one is computed: each is shared out among all threads


class Prepared(NamedTuple):
    """Batch `number`, the images `rows`, int64 `[n]`: for each preprocessing uint8 `[B, S, S, 3]`, n <= B.

    Positions after the last image, and those of the unreadable ones that `errors` names by row, are black.
    """

    number: int
    rows: NDArray[np.int64]
    images: list[Pixels]
    errors: dict[int, str]


@dataclass(frozen=True)
class Grid:
    """The batches of `count` images in `size`s, and which of them to prepare: from `first` to before `last`."""

    count: int
    size: int
    first: int = 0
    last: int = -1

    @property
    def batches(self) -> range:
        """The numbers of the batches to prepare."""
        batches = -(-self.count // self.size)
        return range(self.first, batches if self.last < 0 else min(self.last, batches))

    def rows(self, number: int) -> NDArray[np.int64]:
        """int64 `[n]`: the images of a batch."""
        return np.arange(number * self.size, min((number + 1) * self.size, self.count))


def prepare(
    inputs: Inputs,
    preps: Sequence[Preprocessing],
    grid: Grid,
    workers: int = 0,
    ahead: int = AHEAD,
    truncated: dict[int, str] | None = None,
) -> Iterator[Prepared]:
    """The batches of `grid` in order; `workers` 0 is one thread a core. At most `ahead` + 1 batches exist at a time.
    With `truncated`, what remains of truncated files is taken, and `truncated` gets a line about each, by its row.

    The threads end with the iterator: when it is used up, closed, dropped, or has raised.
    """
    work = _Work(inputs, preps, [EvalTransform(prep) for prep in preps], grid, workers or cores(), truncated)
    numbers = iter(grid.batches)
    with ThreadPoolExecutor(1, "tandem-read") as reader, ThreadPoolExecutor(work.threads, "tandem-prepare") as pool:
        waiting = deque(work.start(pool, reader, number) for number in itertools.islice(numbers, ahead))
        try:
            while waiting:
                batch, shares = waiting.popleft()
                waiting.extend(work.start(pool, reader, number) for number in itertools.islice(numbers, 1))
                for share in shares:
                    share.result()
                yield batch
                del batch, shares  # so that its memory is free as soon as the consumer lets go
        finally:
            for executor in (reader, pool):
                executor.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Work:
    """The state that the threads share."""

    inputs: Inputs
    preps: Sequence[Preprocessing]
    transforms: list[EvalTransform]
    grid: Grid
    threads: int
    truncated: dict[int, str] | None

    def start(
        self, pool: ThreadPoolExecutor, reader: ThreadPoolExecutor, number: int
    ) -> tuple[Prepared, list[Future[None]]]:
        """Submit a batch to the threads."""
        rows = self.grid.rows(number)
        pixels = [np.zeros((self.grid.size, prep.size, prep.size, 3), np.uint8) for prep in self.preps]
        batch = Prepared(number, rows, pixels, {})
        read = reader.submit(lambda: list(map(self._source, rows.tolist()))) if self.inputs.ascending else None
        shares = np.array_split(np.arange(len(rows)), min(self.threads, len(rows)))
        return batch, [pool.submit(self._fill, batch, share.tolist(), read) for share in shares]

    def _source(self, row: int) -> Source | DataError:
        """The source of an image; the error of an unreadable one."""
        try:
            return self.inputs.read(row)
        except DataError as error:
            return error

    def _fill(self, batch: Prepared, positions: list[int], read: Future[list[Source | DataError]] | None) -> None:
        for position in positions:
            row = int(batch.rows[position])
            note = None if self.truncated is None else functools.partial(self.truncated.__setitem__, row)
            try:
                image = opened(read.result()[position] if read else self._source(row), note)
                for out, transform in zip(batch.images, self.transforms, strict=True):
                    out[position] = transform(image(transform.shrink, transform.prep.icc_to_srgb))
            except DataError as error:
                batch.errors[row] = names.of_path(str(error))  # it is written to files, whatever the path's bytes
            except Exception as error:
                error.add_note(f"while preparing {self.inputs.ids[row]}")
                raise


def opened(source: Source | DataError, truncated: Callable[[str], None] | None = None) -> Pictured:
    """A source as a function of the wanted scale and whether in sRGB; raises `DataError`. With `truncated`, a function
    that takes a message, what remains of a truncated file is taken."""
    if isinstance(source, DataError):
        raise source
    if isinstance(source, (Path, bytes)):
        return Picture(source, truncated=truncated)
    if not isinstance(source, np.ndarray):
        return source
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
        raise DataError(f"image array of {source.dtype} {source.shape}: give uint8 of shape (height, width, 3), RGB")
    return lambda _shrink, _to_srgb: source
