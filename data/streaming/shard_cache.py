"""The shards of a URL that are on this machine at the moment, shared by its processes, and the index of each.

A shard lies in the user's cache folder, whole or not at all, with its index beside it: where its images are, and their
labels. The index stays; shards go, the longest unused first, where `limit` bytes would be exceeded. A process holds a
shard by a lock, which ends with the process; the system's locks are needed, so this is for Linux and macOS.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, NamedTuple

from config.errors import BackendUnavailable, DataError
from config.places import atomic_write, cache_folder
from data.streaming import transfer

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LIMIT = 20 * 10**9
INDEX = ".index.json"
_SHARD, _PART = ".tar", ".part"
_VERSION = 1  # of the index; raise it when its form changes
Row = tuple[str, str, int, int, str | None]  # key and name of an image, where it lies, how long it is, its label


class Index(NamedTuple):
    """A shard's address, its size in bytes, the CRC-32 of its content, and its images."""

    url: str
    size: int
    crc: int
    rows: list[Row]


class Stopped(Exception):
    """Nobody waits for the shard any more."""


def folder() -> Path:
    """Where all shards lie."""
    return cache_folder() / "shards"


def paths_of(addresses: Sequence[str], what: str) -> tuple[Path, dict[str, Path]]:
    """A folder, and the path in it of the shard of each address. `what` distinguishes ways of indexing.
    `BackendUnavailable` on Windows."""
    if fcntl is None:
        raise BackendUnavailable("data.streaming from a URL needs Linux or macOS; download the shards")
    names = transfer.names(addresses)
    first = addresses[0].partition("?")[0].removesuffix(names[addresses[0]])
    root = folder() / hashlib.sha256(f"{_VERSION}|{first}|{what}".encode()).hexdigest()[:16]
    return root, {address: root / name for address, name in names.items()}


def belongs(file: Path) -> bool:
    """Whether a file is a shard of a URL, which may have to be fetched."""
    return file.is_relative_to(folder())


def find(path: Path, url: str = "") -> Index | None:
    """The index of a shard, None where there is none; one that was made at another address than `url` is changed."""
    try:
        index = _decoded(_index_file(path).read_bytes())
    except FileNotFoundError:
        return None
    return keep(path, index._replace(url=url)) if index and url and index.url != url else index


@functools.cache
def size(path: Path) -> int:
    """The bytes of an indexed shard."""
    return _indexed(path).size


def adopt(path: Path, content: bytes, url: str) -> Index | None:
    """Keep an index that lies beside the shard at `url`; None where it is none of this form."""
    index = _decoded(content)
    return keep(path, index._replace(url=url)) if index else None


def keep(path: Path, index: Index) -> Index:
    """Keep the index of a shard. `DataError` where there is no room."""
    file = _index_file(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps([_VERSION, *index]))
    except OSError as error:
        raise _write_error(file, error) from error
    return index


def _index_file(path: Path) -> Path:
    return path.with_name(path.name + INDEX)


def _indexed(path: Path) -> Index:
    index = find(path)
    if index is None:
        raise DataError(f"{path}: its index is gone; start again, so that the shard is indexed anew")
    return index


def _decoded(content: bytes) -> Index | None:
    try:
        version, url, size, crc, rows = json.loads(content)
    except (ValueError, TypeError):
        return None
    return Index(url, size, crc, [tuple(row) for row in rows]) if version == _VERSION else None


def hold(path: Path, limit: int = LIMIT, stop: Callable[[], bool] = lambda: False) -> BufferedReader:
    """The open shard, fetched first where it is not there; it stays until the file is closed.

    Raises `DataError` where it cannot be fetched or kept, or is no longer what was indexed, `Stopped` where `stop`
    returns true.
    """
    while True:
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            _fetch(path, limit, stop)
            continue
        fcntl.flock(stream, fcntl.LOCK_SH)
        if _is_at(stream, path):
            os.utime(path)  # what was used last goes last
            return stream
        stream.close()  # removed before it was locked


def _fetch(path: Path, limit: int, stop: Callable[[], bool]) -> None:
    """Bring a shard here; processes that want the same one wait for the first of them."""
    index = _indexed(path)
    unfinished = path.with_name(f".{path.name}{_PART}")
    with open(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o644), "wb") as out:  # noqa: PTH123
        fcntl.flock(out, fcntl.LOCK_EX)
        if not _is_at(out, unfinished):  # another process has fetched it, or failed to
            return
        try:
            if not path.exists():
                _reserve(out, index.size, limit)
                _copy(index, out, stop)
                unfinished.replace(path)
        except OSError as error:
            raise _write_error(path, error) from error
        finally:
            if _is_at(out, unfinished):
                unfinished.unlink()


def _reserve(out: IO[bytes], size: int, limit: int) -> None:
    """Give a file its size, after removing shards that nobody holds, the longest unused first, until all that is kept
    and being fetched takes `limit` bytes."""
    with (folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        paths = [path for path in folder().rglob("*") if path.suffix in (_SHARD, _PART)]
        there = [(stat.st_mtime_ns, stat.st_size, path) for path in paths if (stat := _stat(path))]
        total = size + sum(length for _, length, _ in there)
        for _, length, path in sorted(there):
            if total > limit and _try_remove(path):
                total -= length
        out.truncate(size)


def _try_remove(path: Path) -> bool:
    """Whether a shard could be removed: nobody holds it or is fetching it."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def _copy(shard: Index, out: IO[bytes], stop: Callable[[], bool]) -> None:
    crc = done = 0
    for block in transfer.blocks(shard.url, shard.size):
        if stop():
            raise Stopped
        out.write(block)
        crc, done = zlib.crc32(block, crc), done + len(block)
    out.flush()
    if (done, crc) != (shard.size, shard.crc):
        raise DataError(
            f"{shard.url}: is no longer what was indexed ({done} bytes, {shard.size} then); remove the folder "
            f"{folder()}, so that all shards are indexed anew"
        )


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_at(stream: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    stat = _stat(path)
    return stat is not None and os.path.samestat(stat, os.fstat(stream.fileno()))


def _write_error(path: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room, or set data.shard_cache_gb lower" if full else "check its permissions"
    return DataError(f"{path}: cannot be kept ({error.strerror}); {remedy}, or set TANDEM_CACHE to another folder")
