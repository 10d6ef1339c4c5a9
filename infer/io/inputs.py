"""What is to be answered, in one order: a folder, a CSV, a list, a tar or zip archive, files, or standard input.

Nothing is decoded here, and of archives only the names are read; decoding is done in the threads of `prepare`.
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from io import IOBase
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import IO, TypeGuard, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from config.errors import DataError
from data import sources
from data.decode.image import Shrink, of_pillow
from data.names import of_path
from data.pixels import Pixels
from infer.io import archive

# Pixels by the scale that is wanted and whether in sRGB: see `data.images.Picture`.
Pictured = Callable[[Shrink, bool], Pixels]
Source = Path | bytes | NDArray | Pictured
# What `Runner.predict` takes for an image: a path, an encoded image, one of Pillow's, uint8 `[H, W, 3]` RGB.
Image = str | PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | NDArray[np.uint8]
_TAKEN = "a path, encoded bytes, a PIL image or a uint8 array of shape (height, width, 3)"
STDIN = "-"
_IMAGE_LIMIT = 256 * 2**20  # bytes of one image on standard input
_SPOOL = 64 * 2**20  # bytes of an archive on standard input that stay in memory; the rest goes to a temporary file
_HEAD = 512
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".npz")


@dataclass(frozen=True, eq=False)
class Inputs:
    """`ids` in their order; `read(n)` is the n-th image as a path, as encoded bytes, as uint8 `[H, W, 3]` pixels,
    or as a function that gives such.

    `ascending` says that `read` is to be called one by one in order, as archives want it.
    """

    ids: list[str]
    read: Callable[[int], Source]
    ascending: bool = False
    kept: tuple[IO[bytes], ...] = field(default=(), repr=False)  # files that must stay open for `read`

    def __len__(self) -> int:
        return len(self.ids)


def of_paths(paths: Sequence[Path], ids: Sequence[str] | None = None) -> Inputs:
    """Files in their order, called by `ids` or else by their paths."""
    return Inputs(list(ids or (of_path(str(path)) for path in paths)), lambda number: paths[number])


def of_images(images: Image | Iterable[Image]) -> Inputs:
    """One image, or an iterable of images in any mixture, called by their positions; an array of four dimensions is
    an iterable, too. Raises `TypeError` for anything else."""
    if _is_image(images):
        given = [images]
    elif isinstance(images, Iterable) and not isinstance(images, (Mapping, Set, IOBase)):
        given = list(cast("Iterable[Image]", images))
    else:
        raise TypeError(f"predict takes {_TAKEN}, or a list or another iterable of these; not {_kind(images)}")
    for number, image in enumerate(given):
        if not _is_image(image):
            raise TypeError(f"predict takes a list of images, each {_TAKEN}; image {number} is {_kind(image)}")
    lock = Lock()
    return Inputs([str(number) for number in range(len(given))], lambda number: _source(given[number], lock))


def _is_image(value: object) -> TypeGuard[Image]:
    if isinstance(value, np.ndarray):
        return value.ndim != 4 and value.dtype.kind not in "OSU"
    return isinstance(value, (str, PathLike, bytes, bytearray, memoryview, PIL.Image.Image))


def _source(image: Image, lock: Lock) -> Source:
    if isinstance(image, PIL.Image.Image):
        return _pictured(image, lock)
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    return Path(image) if isinstance(image, (str, PathLike)) else image


def _pictured(image: PIL.Image.Image, lock: Lock) -> Pictured:
    @functools.cache
    def pixels(to_srgb: bool) -> Pixels:
        with lock:  # a list may hold one image twice, and Pillow reads its file when it is asked for the pixels
            return of_pillow(image, to_srgb)

    return lambda _shrink, to_srgb: pixels(to_srgb)


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def collect(named: Sequence[str], id_column: str | None = None) -> Inputs:
    """What `--images` names: one folder, CSV, `.txt` list, archive or `-` for standard input, or any number of files.

    IDs are those of the CSV, the lines of the list, or names below the folder or within the archive. Raises `DataError`
    for what cannot be read or names an image twice.
    """
    if len(named) > 1:
        return _files(named, "--images")
    if named[0] == STDIN:
        return _stdin(sys.stdin.buffer)
    path = Path(named[0])
    if path.is_dir() or path.suffix.lower() in _TABLES:
        table = sources.load_test(path, id_column)
        return of_paths(table.paths, table.ids)
    if not path.exists():
        raise DataError(f"{path}: does not exist; give a folder, a CSV, a .txt list, an archive, image files, or -")
    if path.suffix.lower() == ".txt":
        return _listed(path)
    if archive.is_archive(_head(path)):
        file = path.open("rb")
        return _from_archive(file, str(path))
    return _files(named, "--images")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _from_archive(file: IO[bytes], name: str) -> Inputs:
    found = archive.open(file, name)
    return Inputs(found.ids, found.read, ascending=True, kept=(file,))


def _files(names: Sequence[str], source: str, base: Path | None = None) -> Inputs:
    """Files by the names that they are given; `DataError` for one that is absent or stands twice."""
    paths = [(base or Path()) / name for name in names]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{source}: {len(absent)} of {len(paths)} are no files (first: {', '.join(absent[:3])})")
    twice = archive.repeated(names)
    if twice is not None:
        raise DataError(f"{source}: names {twice!r} twice; keep one of them")
    return of_paths(paths, list(map(of_path, names)))


def _listed(path: Path) -> Inputs:
    """One file a line, relative to the list's folder; blank lines are passed over."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8; save the list as UTF-8 text") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: is empty; write one image file a line")
    return _files(names, str(path), path.parent)


def _stdin(stream: IO[bytes]) -> Inputs:
    """An image, or a tar or zip archive, from standard input."""
    head = stream.read(_HEAD)
    if archive.is_archive(head):
        spooled: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL)  # noqa: SIM115  # as long as the inputs live
        spooled.write(head)
        shutil.copyfileobj(stream, spooled)
        spooled.seek(0)
        return _from_archive(spooled, "standard input")
    data = head + stream.read(_IMAGE_LIMIT + 1 - len(head))
    if not data:
        raise DataError("standard input: is empty; pipe an image, a tar or a zip archive into it")
    if len(data) > _IMAGE_LIMIT:
        raise DataError(f"standard input: holds more than {_IMAGE_LIMIT >> 20} MiB and is no archive; send one image")
    return Inputs(["stdin"], lambda _number: data)
