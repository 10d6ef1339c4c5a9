"""Images that belong together, such as pages of one document or near-duplicates, so that no fold parts them.

They come from a column of the data set's table, from a CSV with columns ID and group, or from both: then what either
joins is one group. The folds made of them are in `data.folds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from config.errors import DataError
from data import csvfile
from data.sources.table import Table

COLUMN = "group"


def read(table: Table, column: str, file: Path | None) -> NDArray[np.int64]:
    """The group int64 `[N]` of each image of `table`, counted from 0.

    `column` of the data set's table is taken where it is there, and must be where there is no `file`. An image
    that the file does not name is a group of its own. Raises `DataError` for a wrong file.
    """
    groups = []
    if file is None or column in table.columns:
        groups.append(_of_column(table, column))
    if file is not None:
        groups.append(_of_file(table, file))
    return joined(groups)


def joined(groupings: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One grouping int64 `[N]` of several: images that share a group in any of them are together, transitively."""
    count = len(groupings[0])
    pairs, first = [], count
    for groups in groupings:
        pairs.append(np.stack([np.arange(count), groups + first], axis=1))
        first += int(groups.max()) + 1
    return connected(first, np.concatenate(pairs))[:count]


def connected(count: int, pairs: Sequence[tuple[int, int]] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The group int64 `[count]` of each item: what is connected by `pairs` shares a number, counted from 0."""
    ends = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _of_column(table: Table, column: str) -> NDArray[np.int64]:
    if column not in table.columns:
        there = f", but {', '.join(table.columns)}{csvfile.near(column, list(table.columns))}" if table.columns else ""
        raise DataError(
            f"{table.root}: its table has no column {column!r}{there}; set folds.group_column, or give a CSV of ID and "
            f"{COLUMN} as folds.groups"
        )
    cells = table.columns[column]
    empty = [name for name, cell in zip(table.ids, cells, strict=True) if not cell]
    if empty:
        raise DataError(f"{table.root}: {empty[0]!r} has no {column!r}; fill it in")
    return _numbered(cells)


def _of_file(table: Table, file: Path) -> NDArray[np.int64]:
    key = csvfile.id_column(file, table.id_column)
    rows = csvfile.read(file, (key, COLUMN))
    group_of = {row.cells[key]: row.cells[COLUMN] for row in rows}
    if len(group_of) < len(rows):
        raise DataError(f"{file}: an ID occurs twice; keep one line for each image")
    foreign = sorted(group_of.keys() - set(table.ids))
    if foreign:
        raise DataError(
            f"{file}: {len(foreign)} of its IDs are not in the data set (first: {', '.join(foreign[:3])}); "
            "make the groups anew, or remove these lines"
        )
    # A tuple is no text, so that an image without a group shares none.
    return _numbered([group_of.get(name, (name,)) for name in table.ids])


def _numbered(names: Sequence[object]) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)
