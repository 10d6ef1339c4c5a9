"""A worker process of the loader: takes parts of batches from a pipe and writes their pixels into shared memory.

`python -m data.loading.worker TASKS MEMORY ANSWERS` is started by `data.processes` with three open files: the pipe of
tasks that all workers read, the memory that they share, and the connection on which this one answers. A read of a pipe
takes a whole record, so workers need no lock, and one that is killed leaves none behind. The process ends when the pipe
does, that is when its parent closes it or dies.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from config import heap
from config.errors import DataError
from data.loading.samples import ByEpoch, Preparation, Transform, at_epoch
from data.pixels import Pixels

# A record of the pipe. Its size divides a page, so that none is torn.
RECORD = struct.Struct("<8Q")


class Task(NamedTuple):
    """Rows of a batch to prepare. `slot` is the batch's memory: its pixels, a byte that is 1 once nobody wants them any
    more, then JSON lists of rows, of which this task's starts at `rows`. `job` is where a pickled `Job` lies."""

    batch: int
    epoch: int
    slot: int
    slot_bytes: int
    rows: int
    rows_bytes: int
    job: int
    job_bytes: int


@dataclass(frozen=True)
class Job:
    """What a loader's tasks have in common. `shape` is that of a batch, uint8 `[B, S, S, 3]`; `source` and
    `source_bytes` are where the pickled source lies, which several loaders may share."""

    transform: Transform | ByEpoch
    shape: tuple[int, int, int, int]
    seed: int
    skip_bad: bool
    source: int
    source_bytes: int


class Answer(NamedTuple):
    """What came of a task: unreadable images by their slot in the batch, or an error at a slot."""

    batch: int
    bad: dict[int, str]
    failed: int = -1
    error: Exception | None = None


def main() -> None:
    """Work until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent is told to stop, and stops its workers
        signal.signal(number, signal.SIG_IGN)
    heap.retain_freed_memory()
    tasks, memory, answers = map(int, sys.argv[1:])
    connection, worker = Connection(answers, readable=False), _Worker(memory)
    try:
        connection.send(os.getpid())
        while record := os.read(tasks, RECORD.size):
            connection.send(worker(Task(*RECORD.unpack(record))))
    except (BrokenPipeError, ConnectionResetError):  # the parent died
        pass


class _Worker:
    """Does tasks; caches what it has mapped and unpickled."""

    def __init__(self, memory: int):
        self._memory = memory
        self._mapped: dict[int, mmap.mmap] = {}
        self._objects: dict[int, Any] = {}  # jobs and sources, by their offset
        self._transforms: dict[int, tuple[int, Transform]] = {}  # of a job's last epoch

    def __call__(self, task: Task) -> Answer:
        slot = self._map(task.slot, task.slot_bytes)
        job: Job = self._unpickled(task.job, task.job_bytes)
        size = int(np.prod(job.shape))
        pixels: Pixels = np.frombuffer(slot, np.uint8, size).reshape(job.shape)
        rows = json.loads(slot[task.rows : task.rows + task.rows_bytes])
        source: Callable[..., Pixels] = self._unpickled(job.source, job.source_bytes)
        epoch, transform = self._transforms.get(task.job, (-1, None))
        if transform is None or epoch != task.epoch:
            transform = at_epoch(job.transform, task.epoch)
            self._transforms[task.job] = task.epoch, transform
        prepare = Preparation(source, transform, job.seed, task.epoch)
        bad = dict[int, str]()
        for row, sample, repeat, address in rows:
            if slot[size]:
                break
            try:
                pixels[row] = prepare(address, sample, repeat)
            except Exception as error:
                if not job.skip_bad or not isinstance(error, DataError):
                    return Answer(task.batch, bad, row, _sendable(error))
                bad[row] = str(error)
        return Answer(task.batch, bad)

    def _unpickled(self, offset: int, length: int) -> Any:
        if offset not in self._objects:
            self._objects[offset] = pickle.loads(self._map(offset, length)[:length])
        return self._objects[offset]

    def _map(self, offset: int, length: int) -> mmap.mmap:
        if offset not in self._mapped:
            self._mapped[offset] = mmap.mmap(self._memory, length, offset=offset)
        return self._mapped[offset]


def _sendable(error: Exception) -> Exception:
    """The error if it can be pickled, else one that says the same; bugs with the lines of code that they came from."""
    if not isinstance(error, DataError):
        error.add_note("in a worker process of the loader:\n" + "".join(traceback.format_tb(error.__traceback__)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        notes = getattr(error, "__notes__", [])
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.__notes__ = notes
    return error


if __name__ == "__main__":
    # Pickled tasks name this module data.loading.worker, not __main__.
    from data.loading import worker

    worker.main()
