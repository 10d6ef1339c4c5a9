"""Images inside a tar or zip archive, one after another, without unpacking anything to disk.

Only regular files whose name says image count; links, devices and hidden files are passed over. Names that lead out of
the archive are refused, although nothing is ever written by them. What a file unpacks to is limited.
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
# What the readers raise for damaged files; RuntimeError is zipfile's word for a password.
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

    Ask for them in ascending order: a packed tar is unpacked from its beginning for every step back. `read` may be
    called from any thread, one at a time. It raises `DataError`.
    """

    ids: list[str]
    read: Callable[[int], bytes]


class _Place(NamedTuple):
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
    plain = _unpacked(file)
    with tarfile.open(fileobj=plain, mode="r:") as opened:
        places = [entry for entry in _members(opened) if _counts(entry.name, name)]
    one_at_a_time = threading.Lock()

    def read(number: int) -> bytes:
        entry = places[number]
        _check_size(name, entry.name, entry.size)
        with one_at_a_time, _faults(name, entry.name):
            plain.seek(entry.start)
            data = plain.read(entry.size)
            if len(data) < entry.size:
                raise EOFError("it ends too soon")
            return data

    return Archive([_id(entry.name) for entry in places], read)


def _members(opened: tarfile.TarFile) -> Iterator[_Place]:
    while (member := opened.next()) is not None:
        opened.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte for every file
        if member.isreg() and not member.issparse():
            yield _Place(member.name, member.offset_data, member.size)


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    head = file.read(8)
    file.seek(0)
    return next((unpack(file) for magic, unpack in _PACKED.items() if head.startswith(magic)), file)


def _zip(file: IO[bytes], name: str) -> Archive:
    opened = zipfile.ZipFile(file)
    infos = [info for info in opened.infolist() if not info.is_dir() and not _is_link(info)]
    infos = [info for info in infos if _counts(info.filename, name)]

    def read(number: int) -> bytes:
        info = infos[number]
        with _faults(name, info.filename), opened.open(info) as stream:
            data = stream.read(FILE_LIMIT + 1)
        _check_size(name, info.filename, len(data))
        return data

    return Archive([_id(info.filename) for info in infos], read)


def _is_link(info: zipfile.ZipInfo) -> bool:
    return (info.external_attr >> 28) == 0o12


class _faults:
    """What goes wrong with one file of an archive, as a `DataError`."""

    def __init__(self, archive: str, member: str):
        self._place = f"{archive}: {member}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _DAMAGED):
            raise DataError(f"{self._place}: cannot be unpacked ({error}); pack it again") from error


def _check_size(archive: str, member: str, size: int) -> None:
    if size > FILE_LIMIT:
        raise DataError(f"{archive}: {member}: unpacks to more than {FILE_LIMIT >> 20} MiB; remove it from the archive")


def _counts(member: str, archive: str) -> bool:
    """Whether it is an image that is asked for; `DataError` for a name that leads out of the archive."""
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
