"""Tables of any text format as columns of cells: CSV, TSV, JSON lines, and lists of names and labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.errors import DataError
from data import csvfile, names


@dataclass(frozen=True)
class Frame:
    """A table: `cells[column]` are as many as `lines`, which are the numbers of its lines in the file.

    Without a header, columns are called `column_1`, `column_2`, ...
    """

    path: Path
    columns: list[str]
    lines: list[int]
    cells: dict[str, list[str]]
    has_header: bool = True

    def __len__(self) -> int:
        return len(self.lines)

    def require(self, column: str, setting: str) -> str:
        """The column as the table spells it; `DataError` that names the nearest one where there is none."""
        if column in self.columns:
            return column
        raise DataError(
            f"{self.path}: no column {column!r}, its columns are {', '.join(map(repr, self.columns))}"
            f"{csvfile.near(column, self.columns)}; set {setting}"
        )


def read(path: Path, is_image: Callable[[str], bool]) -> Frame:
    """The table at `path`; one whose first line names an image (`is_image`) has no header.

    Raises `DataError` for a table that is empty, has no rows, a column twice, or a line with too few or too many cells.
    """
    if path.suffix.lower() == ".jsonl":
        return _of_json_lines(path)
    lines = _of_list(path, is_image) if path.suffix.lower() == ".txt" else csvfile.read_lines(path)
    if not lines:
        raise DataError(f"{path}: is empty; its first line must name the columns (such as ID,target)")
    first = [names.normal(cell) for cell in lines[0][1]]
    has_header = not any(cell and is_image(cell) for cell in first)
    columns = first if has_header else [f"column_{i}" for i in range(1, len(first) + 1)]
    columns = [name or f"column_{i}" for i, name in enumerate(columns, start=1)]  # pandas' index has no name
    csvfile.check_header(path, columns)
    rows = lines[1:] if has_header else lines
    if not rows:
        raise DataError(f"{path}: has a header but no rows; add one row for each image")
    for line, cells in rows:
        csvfile.check_length(path, line, cells, columns)
    by_column = zip(*(cells for _, cells in rows), strict=True)
    table = {name: [names.normal(cell) for cell in column] for name, column in zip(columns, by_column, strict=True)}
    return Frame(path, columns, [line for line, _ in rows], table, has_header)


def _of_list(path: Path, is_image: Callable[[str], bool]) -> list[tuple[int, list[str]]]:
    """The lines of a text file: cells separated as in a CSV, else by blanks; where these are not equally many, a name
    and a label, one of which has blanks."""
    lines = [(n, cells) for n, cells in csvfile.read_lines(path) if not cells[0].startswith("#")]
    if any(len(cells) > 1 for _, cells in lines):
        return lines
    split = [(n, cells[0].split()) for n, cells in lines]
    if len({len(cells) for _, cells in split}) == 1:
        return split
    if is_image(split[0][1][0]):
        return [(n, cells[0].split(maxsplit=1)) for n, cells in lines]
    return [(n, cells[0].rsplit(maxsplit=1)) for n, cells in lines]


def _of_json_lines(path: Path) -> Frame:
    """JSON objects, one a line, as Hugging Face's `metadata.jsonl`; lists and objects inside of them are left out."""
    rows: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            try:
                rows.append((number, dict(json.loads(line))))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}: line {number} is not a JSON object ({error}); correct that line") from error
    if not rows:
        raise DataError(f"{path}: is empty; write a JSON object for each image")
    return of_records(path, rows)


def of_records(path: Path, rows: Sequence[tuple[int, dict[str, object]]]) -> Frame:
    """Records as a table: the columns of any of them, "" for what one lacks."""
    plain = [{key: value for key, value in row.items() if not isinstance(value, list | dict)} for _, row in rows]
    columns = list(dict.fromkeys(itertools.chain.from_iterable(plain)))
    cells = {name: [_cell(row.get(name)) for row in plain] for name in columns}
    return Frame(path, columns, [number for number, _ in rows], cells)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return names.normal(str(int(value) if isinstance(value, float) and value.is_integer() else value))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8; save it as UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
