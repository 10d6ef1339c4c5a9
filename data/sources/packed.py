"""Images inside larger files: a part of a file that reads like a file, and a store for what has to be unpacked."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from config.errors import DataError
from config.places import atomic_path, cache_folder, once_a_host
from data.streaming import shard_cache

Address = str | tuple[str, str, int, int]  # a path, or the file, name, offset and size of a part
_PATH = type(Path())  # the class of paths on this platform
_VERSION = 1  # of what a store holds; raise it when that changes


class PartStat(NamedTuple):
    """The size of a part in bytes and the time of its file's last change."""

    st_size: int
    st_mtime_ns: int


class Part(_PATH):  # type: ignore[misc,valid-type]
    """`size` bytes at `offset` of the file `file`, as a path below it that is called `name`.

    It is read, compared and printed like the path of a file of its own; it can be neither written nor opened by others.
    """

    file: Path
    offset: int
    size: int

    def __new__(cls, file: Path, name: str, offset: int, size: int) -> Part:
        """A path as pathlib makes it; what it refers to is set beside it."""
        path = super().__new__(cls, file, name)
        path.file, path.offset, path.size = file, offset, size
        return path

    def __init__(self, file: Path, name: str, offset: int, size: int):  # noqa: ARG002
        """Python 3.12 and later take the parts of a path here."""
        if _PATH.__init__ is not object.__init__:
            super().__init__(file, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.file, self.relative_to(self.file).as_posix(), self.offset, self.size)

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Paths that are derived of it are plain ones."""
        return Path(*segments)

    def read_bytes(self) -> bytes:
        """Its bytes; `OSError` as a file. A shard of a URL is fetched where it is not there."""
        try:
            stream = self.file.open("rb")
        except FileNotFoundError:
            if not shard_cache.belongs(self.file):
                raise
            stream = shard_cache.hold(self.file)
        with stream:
            stream.seek(self.offset)
            return stream.read(self.size)

    def stat(self, *, follow_symlinks: bool = True) -> PartStat:
        """Its size, and the time of its file; `OSError` where that is gone."""
        return PartStat(self.size, self.file.stat(follow_symlinks=follow_symlinks).st_mtime_ns)

    def exists(self, **_: bool) -> bool:
        """Whether its file is there."""
        return self.file.exists()

    is_file = exists

    def resolve(self, strict: bool = False) -> Part:
        """Itself, in its file without links."""
        return Part(self.file.resolve(strict), self.relative_to(self.file).as_posix(), self.offset, self.size)


def file_of(path: Path) -> Path:
    """The file that an image lies in, which may be the image itself."""
    return path.file if isinstance(path, Part) else path


def address(path: Path) -> Address:
    """A path as JSON has it, for another process, where `of_address` makes it a path again."""
    if not isinstance(path, Part):
        return str(path)
    return str(path.file), path.relative_to(path.file).as_posix(), path.offset, path.size


def of_address(address: Address) -> Path:
    """The path of an address."""
    if isinstance(address, str):
        return Path(address)
    file, name, offset, size = address
    return Part(Path(file), name, offset, size)


class Stored(NamedTuple):
    """Where the images of one file lie in its store, by (name, label or None, offset, size), and notes on the file."""

    data: Path
    rows: list[tuple[str, str | None, int, int]]
    extra: dict[str, Any]

    def path(self, row: int) -> Part:
        """The image of a row."""
        name, _, offset, size = self.rows[row]
        return Part(self.data, name, offset, size)


Unpack = Callable[[], tuple[Iterable[tuple[str, str | None, bytes]], dict[str, Any]]]


def stored(source: Path, what: str, unpack: Unpack) -> Stored:
    """The images of a file that has to be unpacked to be read one by one, in the user's cache folder.

    They are unpacked once, until the file changes. `what` distinguishes ways of unpacking. `DataError` where there is
    no room.
    """
    stat = source.stat()
    text = json.dumps([_VERSION, what, str(source.resolve()), stat.st_size, stat.st_mtime_ns])
    name = f"{source.stem}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder = cache_folder() / "sources"
    data, index = folder / f"{name}.bin", folder / f"{name}.json"
    with once_a_host(f"unpacking {source}", name):
        if not (data.is_file() and index.is_file()):
            rows, extra = unpack()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(data, index, rows, extra)
            except OSError as error:
                raise DataError(
                    f"{folder}: {source.name} cannot be unpacked there ({error.strerror}); make room, or set "
                    "TANDEM_CACHE to another folder"
                ) from error
    return _read(data, index)


@functools.lru_cache(maxsize=64)
def _read(data: Path, index: Path) -> Stored:
    content = json.loads(index.read_text())
    rows = [(str(name), label, int(offset), int(size)) for name, label, offset, size in content["rows"]]
    return Stored(data, rows, content["extra"])


def _write(data: Path, index: Path, rows: Iterable[tuple[str, str | None, bytes]], extra: dict[str, Any]) -> None:
    """Both files, whole or not at all; the index appears last."""
    with atomic_path(index) as unfinished_index, atomic_path(data) as unfinished_data:
        with unfinished_data.open("wb") as stream:
            table = [(name, label, stream.tell(), stream.write(image)) for name, label, image in rows]
        unfinished_index.write_text(json.dumps({"rows": table, "extra": extra}))
