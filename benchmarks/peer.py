"""An arm of a benchmark in a process of its own: another library's, with memory as its users have it while ours keeps
what it frees (see `config.heap`), or one of several that share nothing but the machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any

_held: Any = None


class Peer:
    """`make(*arguments)` in a new process, done before any call is timed, and calls of what it made; a context manager
    that ends the process."""

    def __init__(self, make: Callable[..., object], *arguments: object):
        fresh, usual = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
        self._process = ProcessPoolExecutor(1, fresh, initializer=_hold, initargs=(usual, make, arguments))
        self._process.submit(_ready).result()

    def __call__(self, method: str, *arguments: object) -> Any:
        """What the method gives there; waits for it, and raises what it raises."""
        return self.start(method, *arguments).result()

    def start(self, method: str, *arguments: object) -> Future[Any]:
        """Begin a call, so that several processes may work at a time."""
        return self._process.submit(_call, method, arguments)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown()


def _hold(usual: str, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    global _held
    multiprocessing.set_start_method(usual, force=True)  # a loader's workers would be spawned too, which is slow
    _held = make(*arguments)


def _ready() -> None:
    """Run after `_hold`."""


def _call(method: str, arguments: tuple[object, ...]) -> Any:
    return getattr(_held, method)(*arguments)
