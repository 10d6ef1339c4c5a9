"""Reading a CSV table with the checks that every table needs, and writing one; not what its columns mean."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from config.errors import DataError
from config.places import atomic_write
from config.text import counted
from data import names

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED = 20  # lines that tell what separates the cells


class Row(NamedTuple):
    """One row: its line in the file, counted from 1, and its cells without surrounding blanks."""

    line: int
    cells: dict[str, str]


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """All rows of a UTF-8 file that has at least `columns`, none of them with an empty cell.

    Cells are separated by commas, semicolons, tabs or bars, as its first lines tell, and taken in their normal form
    (`data.names.normal`). A byte-order mark and blank lines are taken. Raises `DataError` for everything else that is
    wrong, with the line.
    """
    lines = _lines(path)
    _, first = next(lines, (0, None))
    if first is None:
        raise DataError(f"{path}: is empty; its first line must name the columns ({', '.join(columns)})")
    header = [names.normal(name) for name in first]
    check_header(path, header)
    for name in columns:
        if name not in header:
            raise DataError(
                f"{path}: no column {name!r}, its columns are {', '.join(map(repr, header))}{near(name, header)}; "
                "rename it, separate columns by commas, or set data.id_column and data.target_column"
            )
    rows = []
    for line, cells in lines:
        check_length(path, line, cells, header)
        row = dict(zip(header, map(names.normal, cells), strict=True))
        for name in columns:
            check_cell(path, line, name, row[name])
        rows.append(Row(line, row))
    if not rows:
        raise DataError(f"{path}: has a header but no rows; add one row for each image")
    return rows


def header(path: Path) -> list[str]:
    """The names of a table's columns; `DataError` where the file cannot be read."""
    return [names.normal(name) for name in next(_lines(path), (0, []))[1]]


def id_column(path: Path, name: str) -> str:
    """The column of IDs of a table that people write beside a data set whose ID column is `name`: ID, or that one."""
    there = {column.casefold(): column for column in header(path)}
    return next((there[wanted] for wanted in ("id", name.casefold()) if wanted in there), "ID")


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all."""
    atomic_write(path, encode(header, rows))


def encode(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """The bytes of a table as `write` writes it: UTF-8, commas, one line feed a row."""
    content = io.BytesIO()
    with io.TextIOWrapper(content, "utf-8", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows(itertools.chain([header], rows))
        text.flush()
        return content.getvalue()


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank, each with its number and its cells as they stand; `DataError` as `read`."""
    return list(_lines(path))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    text = _text(path)
    delimiter = _delimiter(text)
    stream = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")  # a StringIO takes four bytes a character
    del text
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not valid CSV ({error}); correct that line") from error


def delimiter(path: Path) -> str:
    """What separates the cells of a table; `DataError` where the file cannot be read."""
    return _delimiter(_text(path))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save the file as 'CSV UTF-8'") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _delimiter(text: str) -> str:
    """What separates the cells: what parts the first lines into equally many, the most; else what parts the first."""
    lines = (matched[0] for matched in re.finditer(r"[^\n]*\n|[^\n]+", text))
    head = list(itertools.islice((line for line in lines if line.strip()), _SNIFFED))
    try:
        counts = {mark: [len(cells) for cells in csv.reader(head, delimiter=mark)] for mark in _DELIMITERS}
    except csv.Error:  # `_lines` raises it with its line
        return ","
    even = {mark: matched[0] for mark, matched in counts.items() if len(set(matched)) == 1}
    first = {mark: matched[0] for mark, matched in counts.items() if matched}
    most = max(even.values(), default=1)
    return next(
        (mark for mark in even if even[mark] == most > 1), max(first, key=lambda mark: first[mark], default=",")
    )


def near(name: str, others: Sequence[str]) -> str:
    """`, perhaps you mean X` with the nearest of the others, whatever its case; "" where none is near."""
    folded = {other.casefold(): other for other in others}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1)
    return f", perhaps you mean {folded[close[0]]!r}" if close else ""


def check_header(path: Path, header: Sequence[str]) -> None:
    """`DataError` where a column occurs twice."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} occurs twice; rename or remove one of them")


def check_length(path: Path, line: int, cells: Sequence[str], header: Sequence[str]) -> None:
    """`DataError` where a line has more or fewer cells than the header."""
    if len(cells) != len(header):
        count = counted(len(cells), "cell")
        raise DataError(f"{path}: line {line} has {count}, the header has {len(header)}; correct that line")


def check_cell(path: Path, line: int, column: str, cell: str) -> None:
    """`DataError` where a cell that is needed is empty."""
    if not cell:
        raise DataError(f"{path}: line {line} has no {column!r}; fill it in or remove the line")
