"""`python -m data look`: what is understood of a data set, in a page of text, before an image is opened."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from config.sections.data import Data
from config.text import counted, plain
from data import sources
from data.sources import Table, remote

_SHOWN = 30  # classes that are listed one by one
# Settings of `data` that decide what is understood of a data set.
_SETTINGS = ("table", "images", "id_column", "target_column", "label_pattern", "follow_links", "classes", "streaming")


def text(data: Data, root: str) -> str:
    """The lines: sources, classes with their counts, splits, what is left out, and the command that trains on it.

    Raises `DataError` as `sources.load`.
    """
    table = sources.load(data)
    return "\n".join([*table.summary, *_split(table), "", *_classes(table), "", *_commands(data, root)])


def _split(table: Table) -> Iterator[str]:
    if table.fold_of is not None:
        folds, counts = np.unique(table.fold_of, return_counts=True)
        uses = [f"{n} always train" if k < 0 else f"{n} validate fold {k}" for k, n in zip(folds, counts, strict=True)]
        yield f"folds: the data set's own: {', '.join(uses)}; --folds.strategy stratified draws new ones of all images"
    else:
        yield "folds: a fifth of each class validates; --folds.strategy stratified trains a model for each of 5 folds"
    candidates = [name for name, cells in table.columns.items() if _groups(table, name, cells)]
    if candidates:
        yield (
            f"groups: images share cells of column {', '.join(map(repr, candidates))}; to keep them in one fold: "
            f"--folds.strategy stratified_group --folds.group_column {candidates[0]}"
        )


def _groups(table: Table, name: str, cells: Sequence[str]) -> bool:
    """Whether a column could tell which images belong together: far more values than classes, each for few images."""
    usual = name.casefold().endswith(("id", "group", "patient", "lesion"))
    if name in (table.id_column, table.target_column) or not usual:
        return False
    return 2 * len(table.class_names) < len(set(cells)) < 0.95 * len(cells)


def _classes(table: Table) -> Iterator[str]:
    """The classes with their counts in columns, the largest first."""
    counts = np.bincount(table.labels, minlength=len(table.class_names))
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    cells = [f"{counts[i]:7d}  {plain(table.class_names[i])}" for i in order]
    width = max(map(len, cells)) + 2
    columns = max(1, min(4, shutil.get_terminal_size().columns // width))
    rows = -(-len(cells) // columns)
    for row in range(rows):
        yield "".join(cell.ljust(width) for cell in cells[row::rows]).rstrip()
    if len(counts) > _SHOWN:
        yield f"    and {counted(len(counts) - _SHOWN, 'more class')}, the smallest of {counted(counts.min(), 'image')}"


def _commands(data: Data, root: str) -> Iterator[str]:
    """The commands that train on it and look closer, with the settings of data that were given."""
    words = [f"--data.root {shlex.quote(remote.url(Path(root)) or root)}"]
    for name in _SETTINGS:
        value = getattr(data, name)
        if value != Data.model_fields[name].default:
            shown = f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)
            words.append(f"--data.{name} {shlex.quote(shown)}")
    yield f"train on it:  python train_torch.py {' '.join(words)}   (on a Mac: train_mlx.py)"
    yield f"look closer:  python -m data audit {' '.join(words)}"
