"""The table that every source gives: images in a fixed order, their labels, and the data set's own folds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Table:
    """The images of a data set in a fixed order.

    `labels` is int64 `[N]`, a position in `class_names`, or -1 where it is unknown. `ids` are as in the table, or the
    path below the folder with `/` between its parts. `paths` are files, or `data.sources.packed.Part` of larger files.
    `turns` says how files are to be turned once they are decoded (OpenCV's rotate codes), `groups` int64 `[N]` which
    images no fold may part, None for each by itself; both are decisions about the data (see `data.audit`).

    `fold_of` int64 `[N]` is the data set's own split: the fold that an image validates, -1 for one that is always
    trained on; None where the data set has no split. `columns` are further columns of its table, `[N]` cells each.
    `summary` has the lines that tell what was understood and what was left out.
    """

    ids: list[str]
    paths: list[Path]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    root: Path
    turns: Mapping[Path, int] = field(default_factory=dict)
    groups: NDArray[np.int64] | None = None
    fold_of: NDArray[np.int64] | None = None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    id_column: str = "ID"
    target_column: str = "target"
    summary: tuple[str, ...] = ()

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> Table:
        """The images at `rows`, in that order, with all classes."""
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            paths=[self.paths[i] for i in rows],
            labels=self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            fold_of=None if self.fold_of is None else self.fold_of[rows],
            columns={name: [cells[i] for i in rows] for name, cells in self.columns.items()},
        )


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in order: by value where all are integers, by text otherwise."""
    distinct = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))
