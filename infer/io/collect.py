"""Collects the images of `--images` in order: a folder, a CSV, a list, a tar or zip archive, files, or standard input.

Nothing is decoded here, and of archives only the names are read.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from config.errors import DataError
from data import sources
from data.names import of_path
from infer.io import archive
from infer.io.inputs import Inputs, of_paths

STDIN = "-"
_IMAGE_LIMIT = 256 * 2**20  # bytes of one image on standard input
_SPOOL = 64 * 2**20  # bytes of an archive on standard input that stay in memory; the rest goes to a temporary file
_HEAD = 512
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".npz")


def collect(named: Sequence[str], id_column: str | None = None) -> Inputs:
    """The images of `--images`: a folder, CSV, `.txt` list, archive or `-` for standard input, or any number of files.

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
        return _from_archive(path.open("rb"), str(path))
    return _files(named, "--images")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _from_archive(file: IO[bytes], name: str) -> Inputs:
    packed = archive.open(file, name)
    return Inputs(packed.ids, packed.read, ascending=True, open_files=(file,))


def _files(names: Sequence[str], source: str, base: Path | None = None) -> Inputs:
    """Files by their names; `DataError` for one that is absent or stands twice."""
    paths = [(base or Path()) / name for name in names]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{source}: {len(absent)} of {len(paths)} are no files (first: {', '.join(absent[:3])})")
    twice = archive.repeated(names)
    if twice is not None:
        raise DataError(f"{source}: names {twice!r} twice; keep one of them")
    return of_paths(paths, list(map(of_path, names)))


def _listed(path: Path) -> Inputs:
    """One file a line, relative to the list's folder; blank lines are skipped."""
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
