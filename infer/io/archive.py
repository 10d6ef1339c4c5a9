"""Images inside a tar or zip archive, one after another, without unpacking anything to disk.

Only regular files with the suffix of an image are read; links, devices and hidden files are skipped. Names that lead
out of the archive are refused, although no file is written under them. The unpacked size of a file is limited.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple, cast

from config.errors import DataError
from data.decode.formats import SUFFIXES
from data.names import of_path

FILE_LIMIT = 256 * 2**20  # bytes of one unpacked image file
_PACKED: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb")),
    b"BZh": lambda file: cast(IO[bytes], bz2.BZ2File(file)),
    b"\xfd7zXZ\x00": lambda file: cast(IO[bytes], lzma.LZMAFile(file)),  # noqa: SIM115
}
# What the readers raise for damaged files; zipfile raises RuntimeError for a password.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True, eq=False)
class Archive:
    """`ids` are the names of the images in the order of the archive, `read(n)` the bytes of the n-th.

    Read them in ascending order: a packed tar is unpacked from its beginning for every step back. `read` may be
    called from any thread, one at a time. It raises `DataError`.
    """

    ids: list[str]
    read: Callable[[int], bytes]


class _Entry(NamedTuple):
    name: str
    start: int
    size: int


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these bytes (512 at least, where it has as many) is one of those read here."""
    return head[:4] == b"PK\x03\x04" or head[257:262] == b"ustar" or any(head.startswith(magic) for magic in _PACKED)


def open(file: IO[bytes], name: str) -> Archive:
    """The images in an open, seekable file, called `name` in errors.

    `DataError` when it is damaged, encrypted, names a file twice or outside of itself, or holds no image.
    """
    head = file.read(512)
    file.seek(0)
    try:
        packed = _zip(file, name) if head.startswith(b"PK") else _tar(file, name)
    except _DAMAGED as error:
        raise DataError(f"{name}: is a damaged archive ({error}); pack or copy it again") from error
    if not packed.ids:
        raise DataError(f"{name}: holds no images; looked for {', '.join(sorted(SUFFIXES))} in all its folders")
    twice = repeated(packed.ids)
    if twice is not None:
        raise DataError(f"{name}: holds {twice!r} twice; pack it again")
    return packed


def _tar(file: IO[bytes], name: str) -> Archive:
    head = file.read(8)
    file.seek(0)
    plain = next((unpack(file) for magic, unpack in _PACKED.items() if head.startswith(magic)), file)
    with tarfile.open(fileobj=plain, mode="r:") as opened:
        entries = [entry for entry in _members(opened) if _counts(entry.name, name)]
    lock = threading.Lock()

    def read(number: int) -> bytes:
        entry = entries[number]
        _check_size(name, entry.name, entry.size)
        with lock, _faults(name, entry.name):
            plain.seek(entry.start)
            data = plain.read(entry.size)
            if len(data) < entry.size:
                raise EOFError("it ends too soon")
            return data

    return Archive([_id(entry.name) for entry in entries], read)


def _members(opened: tarfile.TarFile) -> Iterator[_Entry]:
    while (member := opened.next()) is not None:
        opened.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte for every file
        if member.isreg() and not member.issparse():
            yield _Entry(member.name, member.offset_data, member.size)


def _zip(file: IO[bytes], name: str) -> Archive:
    opened = zipfile.ZipFile(file)
    infos = [info for info in opened.infolist() if not info.is_dir() and info.external_attr >> 28 != 0o12]  # no links
    infos = [info for info in infos if _counts(info.filename, name)]

    def read(number: int) -> bytes:
        info = infos[number]
        with _faults(name, info.filename), opened.open(info) as stream:
            data = stream.read(FILE_LIMIT + 1)
        _check_size(name, info.filename, len(data))
        return data

    return Archive([_id(info.filename) for info in infos], read)


@contextmanager
def _faults(archive: str, member: str) -> Iterator[None]:
    """Raise what goes wrong with one file of an archive as a `DataError`."""
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"{archive}: {member}: cannot be unpacked ({error}); pack it again") from error


def _check_size(archive: str, member: str, size: int) -> None:
    if size > FILE_LIMIT:
        raise DataError(f"{archive}: {member}: unpacks to more than {FILE_LIMIT >> 20} MiB; remove it from the archive")


def _counts(member: str, archive: str) -> bool:
    """Whether it is a visible image file; `DataError` for a name that leads out of the archive."""
    path, windows = PurePosixPath(member), PureWindowsPath(member)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{archive}: names {member!r}, outside of itself; pack it again with relative names")
    return path.suffix.lower() in SUFFIXES and not any(segment.startswith((".", "__")) for segment in path.parts)


def _id(member: str) -> str:
    return of_path(PurePosixPath(member).as_posix())


def repeated(ids: Sequence[str]) -> str | None:
    """The first name that stands twice, or None."""
    counts = Counter(ids)
    return next((name for name, count in counts.items() if count > 1), None)
