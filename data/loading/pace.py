"""Whether threads or worker processes prepare a loader's batches.

Threads start at once and share memory, but an image holds the interpreter's lock for a tenth to a quarter of its time,
so more than about ten threads are no faster. Processes take a second to start and some memory each.
"""

from __future__ import annotations

import sys
import time
from typing import Literal

from config.errors import DataError
from config.text import counted
from data.cores import cores
from data.loading.processes import Workers, running, workers

THREADS_DO = 8  # cores that threads keep busy
_MOST = 32  # processes that are started without being asked for
_TRIAL = 5.0  # seconds
_WAITING = 0.1  # of the time, from which on a consumer waits for its loader
_BUSY = 0.85  # of what the threads could compute, above which the cores are the limit


class Pace:
    """Times how fast batches are prepared and consumed. `processes` is `data.processes`, `threads` `data.workers`."""

    def __init__(self, processes: int | Literal["auto"], threads: int):
        self._threads = min(threads or cores(), cores())
        self._auto = processes == "auto" and sys.platform == "linux" and self._threads > THREADS_DO
        self._count = min(self._threads, _MOST) if processes == "auto" else int(processes)
        self._on = bool(self._count) and processes != "auto"
        self._pool: Workers | None = None
        self._waited = self._taken = self._computed = self._clock = 0.0
        self._images = 0

    def workers(self) -> Workers | None:
        """The processes to prepare the next batch; None for threads, which continue while processes are starting."""
        if self._pool is None or self._pool.closed:
            self._pool = running(self._count) if self._auto else None  # another loader's
            if self._on and self._pool is None:
                self._pool = workers(self._count)
        try:
            return self._pool if self._pool and (not self._auto or self._pool.ready) else None
        except DataError as error:
            self._stay(error)
            return None

    def _stay(self, error: DataError) -> None:
        """Keep threads, as the processes of `auto` cannot be started."""
        print(f"data: {error} (training goes on with threads)")
        self._auto, self._on, self._pool = False, False, None

    def note(self, asked: float, yielded: float | None, images: int) -> float:
        """Now. A batch of so many images was `asked` for before; the one before it went at `yielded`."""
        now, computed = time.perf_counter(), time.process_time()
        if yielded is not None and self._auto and self._pool is None:
            self._waited += now - asked
            self._taken += now - yielded
            self._computed += computed - self._clock
            self._images += images
            if self._taken >= _TRIAL:
                self._judge()
        self._clock = computed
        return now

    def _judge(self) -> None:
        """Start processes where the consumer waits, and not because all cores are busy."""
        busy = self._computed > _BUSY * self._threads * self._taken
        if self._waited > _WAITING * self._taken and not busy:
            loaded, possible = self._images / self._taken, self._images / max(self._taken - self._waited, 1e-3)
            threads = counted(self._threads, "thread prepares", "threads prepare")
            processes = counted(self._count, "worker process takes", "worker processes take")
            print(
                f"data: {threads} {loaded:.0f} images/s, training could take {possible:.0f}; {processes} over "
                "(data.processes 0 keeps threads)"
            )
            try:
                self._pool, self._on = workers(self._count), True
            except DataError as error:
                self._stay(error)
        self._waited = self._taken = self._computed = 0.0
        self._images = 0
