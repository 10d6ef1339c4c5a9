"""Reading a CSV table with the checks that every table needs, and writing one; not what its columns mean."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from config.errors import DataError


class Row(NamedTuple):
    """One row: its line in the file, counted from 1, and its cells without surrounding blanks."""

    line: int
    cells: dict[str, str]


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """All rows of a UTF-8, comma-separated file that has at least `columns`, none of them with an empty cell.

    A byte-order mark and blank lines are taken. Raises `DataError` for everything else that is wrong, with the line.
    """
    lines = _lines(path)
    if not lines:
        raise DataError(f"{path}: is empty; its first line must name the columns ({', '.join(columns)})")
    header = [name.strip() for name in lines[0][1]]
    _check_header(path, header, columns)
    if len(lines) == 1:
        raise DataError(f"{path}: has a header but no rows; add one row for each image")
    return [_row(path, line, header, cells, columns) for line, cells in lines[1:]]


def header(path: Path) -> list[str]:
    """The names of a table's columns; `DataError` where the file cannot be read."""
    lines = _lines(path)
    return [name.strip() for name in lines[0][1]] if lines else []


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table beside its place and rename it into it, so that it is whole or absent."""
    replace(path, encode(header, rows))


def encode(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """The bytes of a table as `write` writes it: UTF-8, commas, one line feed a row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def replace(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step; a reader, or a crash, never sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save the file as 'CSV UTF-8'") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not valid CSV ({error}); correct that line") from error


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} occurs twice; rename or remove one of them")
    for name in columns:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f", perhaps you mean {near[0]!r}" if near else ""
            raise DataError(
                f"{path}: no column {name!r}, its columns are {', '.join(map(repr, header))}{hint}; "
                "rename it, separate columns by commas, or set data.id_column and data.target_column"
            )


def _row(path: Path, line: int, header: list[str], cells: list[str], columns: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise DataError(f"{path}: line {line} has {len(cells)} cells, the header has {len(header)}; correct that line")
    row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    for name in columns:
        if not row[name]:
            raise DataError(f"{path}: line {line} has no {name!r}; fill it in or remove the line")
    return Row(line, row)
