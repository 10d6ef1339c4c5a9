"""Writing in the background: one thread, one save at a time. What is written is decided by the loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Saver:
    """A context around a fold's training. Functions passed to it must hold no device array, as these are bound to
    threads.

    An error of the writing thread is raised in the training thread: at the next save, by `wait`, or at the end of the
    context.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tandem-saver")
        self._last: Future[None] | None = None

    def save(self, write: Callable[[], None]) -> None:
        """Start `write` in the background, after the save before it is complete."""
        self.wait()
        self._last = self._pool.submit(write)

    def wait(self) -> None:
        """Return when nothing is being written."""
        last, self._last = self._last, None
        if last:
            last.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()
