"""Whether a submission file is what the sample asks for: every fault is named, none stops the search."""

from __future__ import annotations

import codecs
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from config.errors import DataError
from config.text import counted
from data import csvfile, names
from infer.io.submission import Kind, Rows, fractions, kind_of, read_rows

_SUM_TOLERANCE = 1e-3  # how far a row of probabilities may be from one


def faults(
    path: Path, sample: Path, id_column: str | None = "ID", *, labels: Sequence[str] = (), positive: bool = False
) -> list[str]:
    """All faults of the submission `path` against `sample`, one line each; empty for a good file.

    Checked: byte-order mark and delimiter, columns and their order, IDs (missing, unknown, repeated, order), empty
    cells, NaN, dtypes, labels that are none of `labels`, and for files with a column a class that each is a probability
    and that rows sum to one. One column of fractions in the sample, or of whatever numbers with `positive`, is to hold
    probabilities. `DataError` when the sample itself is unusable.
    """
    wanted = read_rows(sample)
    faults = _encoding(path, sample)
    try:
        rows = read_rows(path)
    except DataError as error:
        return [f"{path}: {fault}" for fault in faults] or [str(error)]
    key = next((name for name in wanted.header if names.normal(name) == id_column), wanted.header[0])
    faults += _columns(rows.header, wanted.header)
    if key in rows.header:
        faults += _ids(_column(rows, key), _column(wanted, key))
    values = [name for name in wanted.header if name != key and name in rows.header]
    single = len(values) == 1
    probable = single and (positive or fractions(_column(wanted, values[0])))
    for name in values:
        want = kind_of(_column(wanted, name))
        faults += _cells(name, _column(rows, name), "float" if probable or (not single and want == "int") else want)
    if single and labels and not probable:
        faults += _unknown(values[0], _column(rows, values[0]), labels)
    if not faults and (probable or not single):
        faults += _probabilities(rows, key, values)
    return [f"{path}: {fault}" for fault in faults]


def _encoding(path: Path, sample: Path) -> list[str]:
    """A byte-order mark or a delimiter that the sample does not have."""
    with path.open("rb") if path.is_file() else io.BytesIO() as mine, sample.open("rb") as theirs:
        head, wanted = mine.readline(), theirs.readline()
    marked = head.startswith(codecs.BOM_UTF8) and not wanted.startswith(codecs.BOM_UTF8)
    faults = ["begins with a byte-order mark; save it as UTF-8 without one"] * marked
    other = next((mark for mark in (b",", b";", b"\t", b"|") if mark in head and mark not in wanted), None)
    mark = csvfile.delimiter(sample)
    if other and mark.encode() not in head:
        faults.append(f"columns are separated by {other.decode()!r} where the sample has {mark!r}; save it like that")
    return faults


def _unknown(name: str, cells: Sequence[str], labels: Sequence[str]) -> list[str]:
    known = {*labels, *(str(float(label)) for label in labels if kind_of([label]) != "text")}
    wrong = [(row, cell) for row, cell in enumerate(cells) if cell.strip() and cell not in known]
    if not wrong:
        return []
    row, cell = wrong[0]
    return [
        f"column {name!r}: {counted(len(wrong), 'label is', 'labels are')} unknown, the first is {cell!r} "
        f"in row {row + 2}"
    ]


def _columns(header: Sequence[str], wanted: Sequence[str]) -> list[str]:
    if list(header) == list(wanted):
        return []
    missing = [f"column {name!r} is missing" for name in wanted if name not in header]
    extra = [f"column {name!r} is not in the sample" for name in header if name not in wanted]
    order = f"columns are in another order: {', '.join(header[:4])} where the sample has {', '.join(wanted[:4])}"
    return [*missing, *extra] or [order]


def _ids(ids: Sequence[str], wanted: Sequence[str]) -> list[str]:
    faults = []
    have, asked = set(ids), set(wanted)
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    missing = [name for name in wanted if name not in have]
    unknown = [name for name in ids if name not in asked]
    for wrong, text in ((repeated, "repeated"), (missing, "missing"), (unknown, "not in the sample")):
        if wrong:
            faults.append(f"{counted(len(wrong), 'ID is', 'IDs are')} {text}, such as {wrong[0]!r}")
    if not faults and list(ids) != list(wanted):
        row = next(i for i, (a, b) in enumerate(zip(ids, wanted, strict=True)) if a != b)
        faults.append(f"IDs are in another order: row {row + 2} is {ids[row]!r} where the sample has {wanted[row]!r}")
    return faults


def _cells(name: str, cells: Sequence[str], want: Kind) -> list[str]:
    empty = [row for row, cell in enumerate(cells) if not cell.strip()]
    if empty:
        return [
            f"column {name!r}: {counted(len(empty), 'cell is', 'cells are')} empty, the first in row {empty[0] + 2}"
        ]
    numbers = want != "text"
    wrong = [row for row, cell in enumerate(cells) if numbers and _endless(cell)]
    if wrong:
        return [
            f"column {name!r}: {counted(len(wrong), 'cell is', 'cells are')} NaN or infinite, the first "
            f"in row {wrong[0] + 2}"
        ]
    have = kind_of(cells)
    if not cells or want in (have, "text") or (want, have) == ("float", "int"):
        return []
    shares = (want, have) == ("int", "float") and all(0 <= float(cell) <= 1 for cell in cells)
    hint = "; where these are probabilities, give --positive CLASS" if shares else ""
    return [f"column {name!r}: holds {have} values where the sample has {want}{hint}"]


def _probabilities(rows: Rows, key: str, values: Sequence[str]) -> list[str]:
    columns = [rows.header.index(name) for name in values]
    if kind_of(row[column] for row in rows.rows for column in columns) == "text":
        return []
    faults = []
    for number, row in enumerate(rows.rows, start=2):
        numbers = [float(row[column]) for column in columns]
        wrong = next((column for column, value in zip(columns, numbers, strict=True) if not 0 <= value <= 1), None)
        if wrong is not None:
            which = "is negative" if float(row[wrong]) < 0 else "is above 1"
            cell = f"{row[wrong]} in column {rows.header[wrong]!r} {which}"
            faults.append(f"row {number} ({row[rows.header.index(key)]}): {cell}")
        elif len(values) > 1 and abs(math.fsum(numbers) - 1) > _SUM_TOLERANCE:
            faults.append(f"row {number} ({row[rows.header.index(key)]}): sums to {math.fsum(numbers):.6g}, not to 1")
    more = [f"and {counted(len(faults) - 3, 'more such row')}"] if len(faults) > 3 else []
    return faults[:3] + more


def _endless(cell: str) -> bool:
    try:
        return not math.isfinite(float(cell))
    except ValueError:
        return False


def _column(rows: Rows, name: str) -> list[str]:
    column = rows.header.index(name)
    return [row[column] for row in rows.rows]
