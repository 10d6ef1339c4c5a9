"""Where Tandem keeps what it can make again, a folder of the user's outside of data sets and runs, and how processes
that start together make it once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def cache_folder() -> Path:
    """`$TANDEM_CACHE`, else `tandem` below `$XDG_CACHE_HOME` or `~/.cache`; it may be deleted at any time."""
    chosen = os.environ.get("TANDEM_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"


@contextmanager
def once_a_host(what: str, of: str, stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """A context in which one process at a time makes something in the cache folder, `what` for people, `of` to tell it
    from others of its kind. The others wait, and should look whether it is made by then; its value is whether this one
    waited.

    A stop ends the wait, and where no lock can be had there is none: then it is made twice, as whole files.
    """
    name = hashlib.sha256(f"{what} {of}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = cache_folder() / "locks"
    lock, waiting = FileLock(folder / name), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                if stop():
                    break
                if not waiting:
                    print(f"waiting for another process: {what}")
                waiting = True
    except OSError:  # a folder that cannot be written
        pass
    try:
        yield waiting
    finally:
        lock.release()
