"""Files and folders that are complete or absent; the user's cache folder; and how processes that start together write
an entry of the cache once."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import ConfigError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A context with a path beside `path` to write to: renamed to `path` at its end, and removed where an error ends
    it. Neither a reader nor a crash sees half of the file.

    A link stays one: the file that it points to is replaced. A pipe or a device, as /dev/stdout, is written itself.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        unfinished.replace(target)
    except OSError as error:
        if str(error.filename) == str(unfinished):  # a message is to name the file that people know
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # of a folder that is none: the error above says so
            unfinished.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file whole, or leave what was there; text as UTF-8."""
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A context with a new folder beside `path` to write into: renamed to `path` at its end unless another process has
    made that one meanwhile, and removed where an error ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        unfinished = Path(beside) / path.name
        unfinished.mkdir()
        yield unfinished
        if not path.exists():
            unfinished.rename(path)


def check_writable(folder: Path, setting: str) -> None:
    """`ConfigError` where nothing can be written into a folder, or it cannot be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.access(path, os.F_OK))
    if not there.is_dir():
        raise ConfigError(f"{setting}: {folder} cannot be a folder, as {there} is a file; give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting}: {there} is not writable; change its permissions, or give another folder")


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
