"""Worker processes of the loader, for machines with so many cores that threads would wait for the interpreter.

Batches travel in memory without a name (`memfd_create`, elsewhere an unlinked temporary file): nothing is left of it
however a process dies, and /dev/shm, which containers keep small, is not used. Workers are started afresh, never
forked, in a process group of their own, so that Ctrl-C reaches the parent alone. What a worker does is
`data.loading.worker`.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config.errors import ConfigError, DataError
from config.text import counted
from data.loading.samples import ByEpoch, Transform
from data.loading.worker import RECORD, Answer, Job, Task
from data.pixels import Pixels

_ROW_BYTES = 4352  # a path of the longest kind and its numbers; memory that is not written to takes none
_LEAST = 4  # images of a task, so that messages cost little
_PATIENCE = 5.0  # seconds for workers to end by themselves
Row = tuple[int, int, int, Any]  # slot in the batch, sample, how often that stood before, the source's address of it
_pools: weakref.WeakValueDictionary[int, Workers] = weakref.WeakValueDictionary()


def workers(count: int) -> Workers:
    """The pool of so many processes; loaders that live at the same time share it, and it ends with the last one."""
    if sys.platform == "win32":
        raise ConfigError("data.processes: worker processes need Linux or macOS; set it to 0 for threads")
    pool = running(count)
    if pool is None:
        pool = _pools[count] = Workers(count)
    return pool


def running(count: int) -> Workers | None:
    """The pool of so many processes, if there is one."""
    pool = _pools.get(count)
    return None if pool is None or pool.closed else pool


class Pending:
    """A batch that is being prepared: its pixels, uint8 `[B, S, S, 3]`, and what is known of it so far."""

    def __init__(self, pixels: Pixels, cancelled: Pixels, tasks: int):
        self.pixels, self._cancelled, self.left = pixels, cancelled, tasks
        self.bad: dict[int, str] = {}
        self.failed: dict[int, Exception] = {}

    def cancel(self) -> None:
        """Have the workers skip what is left of it; its memory is free once they have."""
        self._cancelled[0] = 1


class Workers:
    """`count` processes that prepare batches. Several threads may use them; one at a time waits for a batch."""

    def __init__(self, count: int):
        self._lock = threading.RLock()
        self._memory, self._selector = _Memory(), selectors.DefaultSelector()
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self._pending: dict[int, Pending] = {}
        self._sources: list[tuple[object, tuple[int, int]]] = []
        self._number = 0
        reading, self._tasks = os.pipe()
        self._end = weakref.finalize(self, _end, self._tasks, self._processes, self._pending, self._selector)
        try:
            for _ in range(count):
                answers, process = _start(reading, self._memory.file)
                self._processes[answers] = process
                self._selector.register(answers, selectors.EVENT_READ)
        except OSError as error:
            self._end()
            raise DataError(
                f"data.processes: {counted(count, 'worker process')} cannot be started ({error.strerror}); set it "
                "lower, or to 0 for threads"
            ) from error
        finally:
            os.close(reading)
        self._starting = set(self._processes)

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def closed(self) -> bool:
        """Whether the processes have ended."""
        return not self._end.alive

    @property
    def ready(self) -> bool:
        """Whether every process has started."""
        with self._lock:
            if self._starting:
                self._receive(0)
            return not self._starting

    def register(
        self, transform: Transform | ByEpoch, shape: tuple[int, int, int, int], seed: int, skip_bad: bool, source: Any
    ) -> tuple[int, int]:
        """Where the workers find a loader's job; `source` as `data.cache.images.Shared`."""
        with self._lock:
            pickled = next((pickled for known, pickled in self._sources if known is source), None)
            if pickled is None:
                pickled = self._memory.keep(pickle.dumps(source.reader(len(self))))
                self._sources.append((source, pickled))
            return self._memory.keep(pickle.dumps(Job(transform, shape, seed, skip_bad, *pickled)))

    def start(self, job: tuple[int, int], shape: tuple[int, int, int, int], epoch: int, rows: Sequence[Row]) -> Pending:
        """Begin a batch of one image for each of `rows`, in memory of `shape`."""
        with self._lock:
            self._require_open()
            count = max(1, min(len(self), len(rows) // _LEAST))
            tables = [json.dumps(rows[i * len(rows) // count : (i + 1) * len(rows) // count]) for i in range(count)]
            size, encoded = int(np.prod(shape)), [table.encode() for table in tables]
            length = size + 1 + max(sum(map(len, encoded)), shape[0] * _ROW_BYTES)
            slot, array = self._memory.take(length)
            pending = Pending(array[:size].reshape(shape), array[size : size + 1], count)
            array[size], at = 0, size + 1
            self._number += 1
            self._pending[self._number] = pending
            for table in encoded:
                slot.memory[at : at + len(table)] = table
                task = Task(self._number, epoch, slot.offset, len(slot.memory), at, len(table), *job)
                try:
                    os.write(self._tasks, RECORD.pack(*task))
                except BrokenPipeError:
                    raise self._died(next(iter(self._processes))) from None
                at += len(table)
            return pending

    def wait(self, pending: Pending) -> None:
        """Until a batch is done. A process that died is a `DataError`, and the end of all of them."""
        with self._lock:
            try:
                while pending.left:
                    self._receive(1.0)
            except BaseException:  # such as Ctrl-C in the middle of a message
                self.close()
                raise

    def close(self) -> None:
        """End the processes."""
        self._end()
        if _pools.get(len(self)) is self:
            del _pools[len(self)]

    def _require_open(self) -> None:
        if self.closed:
            raise DataError("the loader's worker processes have ended; start the epoch again")

    def _receive(self, patience: float) -> None:
        """Take what the workers have answered."""
        self._require_open()
        for key, _ in self._selector.select(patience):
            answers: Connection = key.fileobj  # type: ignore[assignment]
            try:
                answer: Answer = answers.recv()
            except (EOFError, OSError):  # also in the middle of a message
                raise self._died(answers) from None
            if answers in self._starting:
                self._starting.remove(answers)
                continue
            pending = self._pending[answer.batch]
            pending.left -= 1
            pending.bad |= answer.bad
            if answer.error is not None:
                pending.failed[answer.failed] = answer.error
            if not pending.left:
                del self._pending[answer.batch]

    def _died(self, answers: Connection) -> DataError:
        process = self._processes[answers]
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = "; the system does that where memory runs out" if code == -signal.SIGKILL else ""
        return DataError(
            f"a worker process of the loader (pid {process.pid}) {how}{why}; set data.processes lower, or to 0 for "
            "threads, and resume"
        )


def _start(tasks: int, memory: int) -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = connection.Pipe(duplex=False)
    numbers = (tasks, memory, theirs.fileno())
    paths = [str(Path(__file__).parents[2]), *(path or str(Path.cwd()) for path in sys.path)]
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # there are as many processes as cores
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "data.loading.worker", *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **alone, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
        pass_fds=numbers,
        process_group=0,
    )
    theirs.close()
    return ours, process


def _end(
    tasks: int,
    processes: dict[Connection, subprocess.Popen[bytes]],
    pending: dict[int, Pending],
    selector: selectors.BaseSelector,
) -> None:
    """Close the pipe, at which the workers end; those that hang are killed."""
    for batch in pending.values():
        batch.cancel()
    os.close(tasks)
    selector.close()
    for answers in processes:
        answers.close()
    for process in processes.values():
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _anonymous_file() -> int:
    """The number of an open file that has no name."""
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        with suppress(OSError):  # some sandboxes forbid it
            return os.memfd_create("tandem-loader")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Slot(NamedTuple):
    """A part of the memory."""

    offset: int
    memory: mmap.mmap


class _Memory:
    """Anonymous memory that the workers map by its file, in slots that are used again once no array shares them."""

    def __init__(self) -> None:
        self.file = _anonymous_file()
        weakref.finalize(self, os.close, self.file)
        self._length = 0
        self._free: list[_Slot] = []

    def take(self, length: int) -> tuple[_Slot, Pixels]:
        """At least so many bytes, and an uint8 array of all of them: the slot is free again when that has no views."""
        fitting = [slot for slot in reversed(self._free) if len(slot.memory) >= length]  # the warmest first
        slot = min(fitting, key=lambda slot: len(slot.memory)) if fitting else self._add(length)
        if fitting:
            self._free.remove(slot)
        array = np.frombuffer(slot.memory, np.uint8)
        weakref.finalize(array, self._free.append, slot).atexit = False
        return slot, array

    def keep(self, content: bytes) -> tuple[int, int]:
        """Where `content` stays, and its length."""
        slot = self._add(len(content))
        slot.memory[: len(content)] = content
        return slot.offset, len(content)

    def _add(self, length: int) -> _Slot:
        rounded = -(-length // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self.file, self._length + rounded)
        slot = _Slot(self._length, mmap.mmap(self.file, rounded, offset=self._length))
        self._length += rounded
        return slot
