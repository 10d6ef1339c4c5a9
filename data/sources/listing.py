"""What every source yields: samples with their label and split, and what was understood; and the table made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import splitext
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from config.text import counted
from data.decode import formats
from data.sources.splits import Split
from data.sources.table import Table, sort_classes
from data.sources.walk import Tree

_SHOWN = 4  # kinds of files, or folders, that a line names


class Sample(NamedTuple):
    """One image: `label` is None where it is unknown, `fold` where the data set has no fold for it."""

    id: str
    path: Path
    label: str | None
    split: Split = "train"
    fold: int | None = None


@dataclass(frozen=True, eq=False)
class Listing:
    """The samples of a data set. `origin` says in words where labels come from, `class_names` their order where the
    source decides it; `columns` are further cells of its table, one for each sample; `used` the files of the folder
    that are read, by relative path."""

    root: Path
    origin: str
    samples: Sequence[Sample]
    class_names: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    id_column: str = "ID"
    target_column: str = "target"
    used: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def table_of(listing: Listing, tree: Tree, tests: int, test_used: frozenset[str]) -> Table:
    """The training and validation images of a listing, beside which `tests` images are to be predicted, of which
    `test_used` are files of the tree; `DataError` for labels that cannot be trained on."""
    rows = [i for i, sample in enumerate(listing.samples) if sample.split in ("train", "val") and sample.label]
    samples = [listing.samples[i] for i in rows]
    _check_ids(listing, samples)
    labels = [str(sample.label) for sample in samples]
    names = listing.class_names or sort_classes(labels)
    if len(set(labels)) < 2:
        fault = f"only one class, {labels[0]!r}" if labels else "no labelled image"
        raise DataError(f"{listing.root}: {fault}; a classifier needs images of two or more")
    number_of = {name: i for i, name in enumerate(names)}
    table = Table(
        [sample.id for sample in samples],
        [sample.path for sample in samples],
        np.array([number_of[label] for label in labels], dtype=np.int64),
        names,
        listing.root,
        fold_of=_folds(samples),
        columns={name: [cells[i] for i in rows] for name, cells in listing.columns.items()},
        id_column=listing.id_column,
        target_column=listing.target_column,
        summary=tuple(_summary(listing, samples, tree, tests, test_used)),
    )
    return _without_empty_classes(table)


def test_table(listing: Listing) -> Table:
    """Images to predict: labels are -1, as they are not for training on."""
    samples = listing.samples
    _check_ids(listing, samples)
    return Table(
        [sample.id for sample in samples],
        [sample.path for sample in samples],
        np.full(len(samples), -1, dtype=np.int64),
        (),
        listing.root,
        id_column=listing.id_column,
    )


def _without_empty_classes(table: Table) -> Table:
    """The table without classes of its source that have no image here; those of a schema stay as they are numbered."""
    counts = np.bincount(table.labels, minlength=len(table.class_names))
    if counts.all():
        return table
    present = np.flatnonzero(counts)
    names = [table.class_names[i] for i in np.flatnonzero(counts == 0)]
    number_of = np.full(len(counts), -1, dtype=np.int64)
    number_of[present] = np.arange(len(present))
    note = f"{counted(len(names), 'class')} of the data set without an image here: {some(names)}"
    return replace(
        table,
        labels=number_of[table.labels],
        class_names=tuple(table.class_names[i] for i in present),
        summary=(*table.summary, note),
    )


def _check_ids(listing: Listing, samples: Sequence[Sample]) -> None:
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        both = [str(sample.path) for sample in samples if sample.id == twice[0]]
        raise DataError(f"{listing.root}: {both[0]} and {both[1]} are both called {twice[0]!r}; rename one of them")


def _folds(samples: Sequence[Sample]) -> NDArray[np.int64] | None:
    """The data set's own split: 0 for validation images, or its fold column counted from 0."""
    if any(sample.split == "val" for sample in samples):
        return np.array([0 if sample.split == "val" else -1 for sample in samples], dtype=np.int64)
    if samples and all(sample.fold is not None for sample in samples):
        values = sorted({int(sample.fold or 0) for sample in samples} - {-1})
        if len(values) > 1 or {sample.fold for sample in samples} == {-1, *values}:
            number_of = {value: i for i, value in enumerate(values)} | {-1: -1}
            return np.array([number_of[int(sample.fold or 0)] for sample in samples], dtype=np.int64)
    return None


def _summary(
    listing: Listing, samples: Sequence[Sample], tree: Tree, tests: int, test_used: frozenset[str]
) -> Iterable[str]:
    counts = Counter(sample.split for sample in samples)
    classes = len({sample.label for sample in samples})
    parts = [f"{counted(counts['train'], 'image')} to train on"]
    parts += [f"{counts['val']} that validate"] * bool(counts["val"])
    parts += [f"{tests} to predict"] * bool(tests)
    yield f"data: {listing.origin}: {counted(classes, 'class')}, {', '.join(parts)}"
    yield from listing.notes
    left = [*_left_out(listing, tree, test_used)]
    if left:
        yield f"left out: {', '.join(left)}"


def _left_out(listing: Listing, tree: Tree, test_used: frozenset[str]) -> Iterable[str]:
    """What of the folder is not read, counted by folder and kind; what is split off within the listing counts too."""
    unused = [name for name in tree.images if name not in listing.used and name not in test_used]
    if unused:
        by_folder = Counter("/".join(name.split("/")[:-1][:2]) for name in unused)
        where = {folder: f"{folder}/" if folder else "the folder itself" for folder in by_folder}
        yield some([f"{counted(count, 'image')} in {where[folder]}" for folder, count in by_folder.items()])
    other = sum(sample.split == "unused" for sample in listing.samples)
    if other:
        yield f"{counted(other, 'image')} of splits that are neither training, validation nor test"
    unlabelled = sum(sample.split in ("train", "val") and not sample.label for sample in listing.samples)
    if unlabelled:
        yield f"{counted(unlabelled, 'image')} without a label"
    files = [name for name in (*tree.tables, *tree.packed) if name not in listing.used and name not in test_used]
    kinds = Counter(splitext(name)[1].lower() or "without suffix" for name in (*files, *tree.others, *tree.archives))
    if kinds:
        passed_over = {suffix: f"{suffix} ({image}: not read)" for suffix, image in formats.PASSED_OVER.items()}
        yield some([f"{counted(count, 'file')} {passed_over.get(kind, kind)}" for kind, count in kinds.most_common()])
    if tree.outputs:
        yield f"Tandem's own {some(tree.outputs)}"


def some(items: Sequence[str]) -> str:
    """The first of several, and how many more there are."""
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
