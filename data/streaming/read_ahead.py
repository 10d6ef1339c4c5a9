"""Fetching the shards of an order before they are needed, and holding them as long as they are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.sources import packed
from data.streaming import shard_cache

_AT_A_TIME = 4  # shards that are fetched at one time
_PATIENCE = 1.0  # seconds for a thread to end


class RemoteShards:
    """The shards of a URL that some paths lie in, of which at most `limit` bytes are to be here at one time."""

    def __init__(self, paths: Sequence[Path], limit: int):
        distinct = dict.fromkeys(path.file for path in paths if isinstance(path, packed.Part))
        self._files, self._limit = [file for file in distinct if shard_cache.belongs(file)], limit
        numbers = {file: number for number, file in enumerate(self._files)}
        files = [packed.file_of(path) for path in paths] if numbers else []
        self._shard = np.array([numbers.get(file, -1) for file in files], np.int64)

    def read_ahead(self, order: NDArray[np.int64], first_batch: int, batch: int, rank: int, world: int) -> ReadAhead:
        """What fetches the shards that a rank's rows of each batch of an order (positions in the paths) need, from
        batch `first_batch` on, of `batch` rows each."""
        start = first_batch * batch
        if not self._files:
            return ReadAhead(np.empty(0, np.int64), start, [], [], self._limit)
        mine = np.arange(start, len(order)) % batch * world // batch == rank
        shard = np.where(mine, self._shard[order[start:]], -1)
        return ReadAhead(shard, start, self._files, [shard_cache.size(file) for file in self._files], self._limit)


class ReadAhead:
    """The shards of one order, fetched in the order of their first use. A context: at its end none is held any more.

    `shard` int64 `[N]` numbers the shard of each position of the order from `start` on, -1 for one that needs none;
    `files` are the shards by number, `sizes` their bytes. Shards are fetched ahead while those that are held take at
    most `limit` bytes; one that is waited for is fetched all the same.
    """

    def __init__(self, shard: NDArray[np.int64], start: int, files: Sequence[Path], sizes: Sequence[int], limit: int):
        numbers, first = np.unique(shard, return_index=True)
        last = len(shard) - 1 - np.unique(shard[::-1], return_index=True)[1]
        by_use = [i for i in np.argsort(first).tolist() if numbers[i] >= 0]
        self._first, self._last = start + first[by_use], start + last[by_use]
        self._files = [files[numbers[i]] for i in by_use]
        self._sizes = [sizes[numbers[i]] for i in by_use]
        self._limit = limit
        self._begun = self._bytes = self._wanted = 0  # shards begun, bytes that they take, shards that are waited for
        self._held: dict[int, IO[bytes]] = {}
        self._done = np.zeros(len(by_use), np.bool_)
        self._faults: dict[int, BaseException] = {}
        self._closed = False
        self._changed = threading.Condition()
        names = [f"tandem-shards-{number}" for number in range(min(_AT_A_TIME, len(self._files)))]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]

    def __enter__(self) -> ReadAhead:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._release(list(self._held))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_PATIENCE)  # one that a server keeps waiting ends with the process

    def wait(self, end: int) -> None:
        """Wait until every shard is here that positions before `end` need; raise what went wrong with one."""
        with self._changed:
            self._wanted = max(self._wanted, int(np.searchsorted(self._first, end)))
            self._changed.notify_all()
            while not self._done[: self._wanted].all():
                for number in sorted(self._faults):
                    if number < self._wanted:
                        raise self._faults[number]
                self._changed.wait()

    def used(self, end: int) -> None:
        """Release the shards that only positions before `end` need."""
        with self._changed:
            self._release([number for number in self._held if self._last[number] < end])
            self._changed.notify_all()

    def _release(self, numbers: list[int]) -> None:
        for number in numbers:
            self._held.pop(number).close()
            self._bytes -= self._sizes[number]

    def _work(self) -> None:
        """Fetch one shard after another until nobody waits for any."""
        while (number := self._next()) is not None:
            try:
                stream = shard_cache.hold(self._files[number], self._limit, lambda: self._closed)
            except BaseException as error:  # raised where the shard is waited for
                with self._changed:
                    self._faults[number] = error
                    self._changed.notify_all()
                continue
            with self._changed:
                self._held[number], self._done[number] = stream, True
                if self._closed:
                    self._release([number])
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            while not self._closed and self._begun < len(self._files):
                number = self._begun
                if number < self._wanted or self._bytes + self._sizes[number] <= self._limit:
                    self._begun += 1
                    self._bytes += self._sizes[number]
                    return number
                self._changed.wait()
        return None
