"""`suspects.csv` of a fold: training images whose labels hard-sample mining suspects. It is read in `results`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.places import atomic_path
from data.sources import Table


def write(
    folder: Path,
    found: Sequence[int],
    paths: Sequence[Path],
    labels: NDArray[np.int64],
    losses: NDArray[np.float32],
    table: Table,
) -> None:
    """Id, target and mean loss of the images `found` among those of `paths`; nothing where there are none."""
    if not found:
        return
    id_of = dict(zip(table.paths, table.ids, strict=True))
    with atomic_path(folder / "suspects.csv") as unfinished, unfinished.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", "target", "loss"))
        for i in found:
            path, target = paths[i], table.class_names[labels[i]]
            writer.writerow((id_of.get(path, str(path)), target, f"{losses[i]:.6f}"))
