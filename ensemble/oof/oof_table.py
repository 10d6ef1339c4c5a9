"""The out-of-fold predictions of several runs, aligned by image. Reading them from the runs' folders is `oof_files`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble.oof import repeats

Ints = NDArray[np.int64]


class Gathered:
    """float32 `[N, C]` logits whose rows lie in several files; rows are copied when they are read.

    Row i is `files[file[r, i]][row[r, i]]` for the repeats r that have one (`file` not -1), 0 for none. Of several the
    logarithm of the mean probability is taken, as `repeats` does.
    """

    def __init__(self, files: Sequence[NDArray[np.floating]], file: Ints, row: Ints):
        self.files, self.file, self.row = list(files), file, row
        self.shape, self.dtype = (file.shape[1], files[0].shape[1]), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[np.float32]:
        file, row = self.file[:, rows], self.row[:, rows]
        gathered = np.zeros((*file.shape, self.shape[1]), dtype=np.float32)
        for logits, file_of, row_of in zip(gathered, file, row, strict=True):
            for number in np.unique(file_of[file_of >= 0]):
                mine = file_of == number
                logits[mine] = self.files[number][row_of[mine]]
        return gathered[0] if len(file) == 1 else repeats.mean(gathered, file >= 0)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)

    def take(self, rows: NDArray[Any]) -> Gathered:
        """These rows, in this order; nothing is copied."""
        return Gathered(self.files, self.file[:, rows], self.row[:, rows])


@dataclass(frozen=True)
class Table:
    """The runs' predictions for all images that any of them predicted.

    `logits[g]` is `[N, C]` of run g, zeros where `present[g]`, bool `[N]`, says that it has none. `fold` int64 `[N]` is
    the fold that the image validated in the first run that predicted it.
    """

    ids: NDArray[np.str_]
    targets: Ints
    logits: list[Gathered]
    present: list[NDArray[np.bool_]]
    fold: Ints

    def take(self, rows: NDArray[Any]) -> Table:
        """These rows, given as indices or as a mask; logits are not copied."""
        logits, present = [z.take(rows) for z in self.logits], [p[rows] for p in self.present]
        return Table(self.ids[rows], self.targets[rows], logits, present, self.fold[rows])

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.logits[0].shape[1]

    def common(self) -> NDArray[np.bool_]:
        """bool `[N]`: the images that all runs predicted."""
        return np.logical_and.reduce(self.present)
