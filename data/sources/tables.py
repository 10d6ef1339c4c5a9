"""A table beside images: which file it is, what its columns mean, and the samples that it lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import basename, splitext

from config.errors import DataError
from config.sections.data import Data
from data import csvfile, names
from data.sources import columns, frame, splits, walk
from data.sources.columns import Columns
from data.sources.folders import split_folders, walked
from data.sources.frame import Frame
from data.sources.listing import Listing, Sample
from data.sources.match import Files
from data.sources.splits import Split
from data.sources.walk import Tree

TRAIN = "train.csv"
_ENOUGH = 0.9  # share of the cells of an ID column that name images, where the table was not asked for
_LABELS = re.compile(r"label|metadata|annotation|ground_?truth", re.IGNORECASE)
_OTHERS = re.compile(r"sample|submission|^folds|^groups|^audit|_probabilities$|^history$|^leaderboard", re.IGNORECASE)
_SAMPLE = re.compile(r"sample.*sub|submission.*(sample|format)", re.IGNORECASE)


@dataclass(frozen=True)
class _LabelTable:
    """A table that was read, its split where its name or folder says one, and its columns."""

    frame: Frame
    split: Split | None
    base: str
    columns: Columns


class Tables:
    """The tables of a folder, and the images that they may name."""

    def __init__(self, tree: Tree, data: Data):
        self.tree, self.data = tree, data
        self.base = tree.table_base
        self.folders = split_folders(tree, self.base)
        self.reasons: list[str] = []  # why tables that look like one of labels were not taken

    @cached_property
    def files(self) -> Files:
        """The images by their names, which take a while to sort where there are many."""
        return Files(self.tree)

    def read(self) -> Listing | None:
        """The labelled samples of the table that was asked for, or else found; None where no table has them.

        `DataError` for a table that was asked for, or that is called train.csv, and cannot be used.
        """
        tables = self._requested() if self.data.table else self._search()
        if not tables:
            return None
        samples: list[Sample] = []
        cells: dict[str, list[str]] = {}
        for table in tables:
            rows, known = self._samples(table), {sample.id for sample in samples}
            if any(sample.id in known for sample in rows):  # 0.png of each split
                rows = [sample._replace(id=f"{sample.split}/{sample.id}") for sample in rows]
            samples += rows
            for name in tables[0].frame.columns:
                cells.setdefault(name, []).extend(table.frame.cells.get(name, [""] * len(rows)))
        first = tables[0]
        shown = " and ".join(self._name(table.frame.path) for table in tables)
        origin = f"{shown}, images in column {first.columns.id!r}, labels in {first.columns.target_text}"
        if first.columns.split:
            origin += f", splits in column {first.columns.split!r}"
        return Listing(
            first.frame.path.parent,
            origin,
            samples,
            columns=cells,
            id_column=first.columns.id if first.frame.has_header else "ID",
            target_column=first.columns.target or "target",
            used=frozenset([*walked(self.tree, samples), *(self._name(table.frame.path) for table in tables)]),
            notes=tuple(self.reasons),
        )

    def find_test(self) -> Listing | None:
        """The images of the table that is called as a test set, None where there is none."""
        name = self._of_split("test")
        return self.read_test(name, strict=False) if name else None

    def read_labelled_test(self, target: str | None) -> Listing | None:
        """The images of the table that is called as a test set with their labels, which are in column `target` if that
        is given; None where there is no such table or column."""
        name = self._of_split("test")
        frame = self._frame(name) if name else None
        if not frame or (target and target not in frame.columns):
            return None
        chosen = columns.find(frame, self.data.id_column, target, self._is_image)
        if not chosen.target and not chosen.one_hot:
            return None
        origin = f"{name}, images in column {chosen.id!r}, labels in {chosen.target_text}"
        return Listing(frame.path.parent, origin, self._samples(_LabelTable(frame, "test", self.base, chosen)))

    def read_test(self, path: str, strict: bool = True) -> Listing:
        """The images that a table lists, without labels; `strict` for a table that must have `data.id_column`.

        Their IDs are those of the sample submission's column, where the table has it beside the images' names.
        """
        frame = self._frame(path)
        asked = self.data.id_column if strict or self.data.id_column in frame.columns else None
        column, _ = columns.find_id(frame, asked, self._is_image)
        rows = _unique_ids(frame, column)
        images = self._locate(frame, rows, "test", walk.parent(path))
        submission = self.sample_submission()
        header = self._frame(submission).columns[0].casefold() if submission else None
        id_column = next((name for name in frame.columns if name.casefold() == header), column)
        ids = _unique_ids(frame, id_column)
        samples = [Sample(name, image, None, "test") for name, image in zip(ids, images, strict=True)]
        origin = f"{self._name(frame.path)}, images in column {column!r}"
        used = frozenset([*walked(self.tree, samples), path, submission or path])
        return Listing(frame.path.parent, origin, samples, id_column=id_column, used=used)

    def sample_submission(self) -> str | None:
        """The sample submission among the tables, None where there is none."""
        return next((name for name in self._siblings() if _SAMPLE.search(basename(name))), None)

    def _requested(self) -> list[_LabelTable]:
        path = Path(str(self.data.table))
        name = path.as_posix() if (self.tree.root / path).is_file() else ""
        if not name and path.is_file():
            name = str(path.absolute())
        if not name:
            raise DataError(f"data.table: {path} is neither a file below {self.tree.root} nor one by itself")
        base = walk.parent(name) if name in self.tree.tables else ""
        return [self._columns(name, None, base, strict=True)]

    def _search(self) -> list[_LabelTable]:
        """train.csv, else the first table that names images and their labels, with a table of the validation split."""
        train = next((name for name in self._siblings() if basename(name).casefold() == TRAIN), None)
        attempts = (self._attempt(name, None, self.base) for name in self._candidates())
        first = self._columns(train, None, self.base, strict=True) if train else next(filter(None, attempts), None)
        if first:
            name = self._of_split("val")
            return [first, self._columns(name, "val", self.base, strict=True)] if name else [first]
        tables = [
            table
            for split, folders in self.folders.items()
            for folder in folders
            for name in self.tree.tables
            if split in ("train", "val", "test") and walk.parent(name) == folder and _LABELS.search(basename(name))
            if (table := self._attempt(name, split, folder))
        ]
        return tables if any(table.split == "train" for table in tables) else []

    def _siblings(self) -> list[str]:
        """The tables of the data set's folder."""
        return [name for name in self.tree.tables if walk.parent(name) == self.base and not name.endswith(".txt")]

    def _of_split(self, split: Split) -> str | None:
        """The first table that is called as a split, None where there is none."""
        return next((name for name in self._siblings() if splits.of_name(splitext(basename(name))[0]) == split), None)

    def _candidates(self) -> list[str]:
        """Tables that may hold the labels, the likeliest by their names first."""
        stems = {name: splitext(basename(name))[0] for name in self._siblings()}
        split_of = {name: splits.of_name(stem) for name, stem in stems.items() if not _OTHERS.search(stem)}
        usable = [name for name, split in split_of.items() if split not in ("val", "test")]
        return sorted(usable, key=lambda name: (split_of[name] != "train", not _LABELS.search(stems[name])))

    def _attempt(self, name: str, split: Split | None, base: str) -> _LabelTable | None:
        """A table that was not asked for, where most of its rows name images, each once, and it has labels."""
        try:
            table = self._columns(name, split, base, strict=False)
        except DataError as error:
            self.reasons.append(f"{name} is not used: {str(error).removeprefix(f'{self.tree.root / name}: ')}")
            return None
        if table.columns.id_hits < _ENOUGH:
            if table.columns.id_hits or _LABELS.search(name):
                share = f"{table.columns.id_hits:.0%} of its column {table.columns.id!r} name images"
                self.reasons.append(f"{name} is not used: {share}; set data.table to use it")
            return None
        if len(set(table.frame.cells[table.columns.id])) < len(table.frame):
            self.reasons.append(f"{name} is not used: it names images more than once; set data.table to use it")
            return None
        return table if table.columns.target or table.columns.one_hot else None

    def _columns(self, name: str, split: Split | None, base: str, *, strict: bool) -> _LabelTable:
        frame = self._frame(name)
        chosen = columns.find(frame, self.data.id_column, self.data.target_column, self._is_image)
        if strict and not chosen.target and not chosen.one_hot:
            raise DataError(
                f"{frame.path}: no column 'target' or other that could be the label, its columns are "
                f"{', '.join(map(repr, frame.columns))}; set data.target_column"
            )
        return _LabelTable(frame, split, base, chosen)

    def _samples(self, table: _LabelTable) -> list[Sample]:
        frame, chosen = table.frame, table.columns
        ids = _unique_ids(frame, chosen.id)
        labels = chosen.targets(frame)
        split_of = map(splits.of_name, frame.cells[chosen.split]) if chosen.split else [table.split] * len(ids)
        folds = map(int, frame.cells[chosen.fold]) if chosen.fold else [None] * len(ids)
        images = self._locate(frame, ids, table.split or "train", table.base)
        return [
            Sample(name, image, label, split or "train", fold)
            for name, image, label, split, fold in zip(ids, images, labels, split_of, folds, strict=True)
        ]

    def _locate(self, frame: Frame, ids: Sequence[str], split: Split, base: str) -> list[Path]:
        """The file of each ID.

        Unless `on_bad_image` is error, one that has none stands where it would be, if there is any image at all.
        """
        bases = self._bases(split, base)
        others: list[Split] = ["train", "val"] if split == "test" else ["test"]
        avoid = [] if self.data.images else [folder for other in others for folder in self.folders.get(other, [])]
        images = [self.files.locate(frame.path, name, bases, avoid) for name in ids]
        missing = [name for name, image in zip(ids, images, strict=True) if image is None]
        keeps = split == "train" and self.data.on_bad_image != "error" and len(missing) < len(ids)
        if missing and not keeps:
            raise self._absent(frame.path, missing, len(ids), bases)
        owner: dict[str, str] = {}
        for name, image in zip(ids, images, strict=True):
            if image is not None and owner.setdefault(image, name) != name:
                both = f"IDs {owner[image]!r} and {name!r} are both {self.tree.root / image}"
                raise DataError(f"{frame.path}: {both}; keep one of them")
        return [self.tree.root / (image or bases[0] + name) for name, image in zip(ids, images, strict=True)]

    def _absent(self, path: Path, missing: Sequence[str], count: int, bases: Sequence[str]) -> DataError:
        folders = " or ".join(str(self.tree.root / base) for base in bases)
        near = self.files.nearest(missing[0])
        hint = f", {near} is there" if near else ""
        if not near and self.tree.images:
            hint = f"; images are in {self.tree.root / walk.parent(self.tree.images[0])}, such as {self.tree.images[0]}"
        return DataError(
            f"{path}: {len(missing)} of {count} IDs have no image in {folders} (first: {', '.join(missing[:3])}{hint});"
            " add the files, remove the lines, or set data.images to their folder"
        )

    def _bases(self, split: Split, base: str) -> list[str]:
        """The folders that are looked through first for the images of a split."""
        if self.data.images:
            folders = [f"{name.strip('/')}/" if name.strip("./") else "" for name in self.data.images]
            for name, folder in zip(self.data.images, folders, strict=True):
                if not (self.tree.root / folder).is_dir():
                    raise DataError(f"data.images: {name} is no folder of {self.tree.root}")
            return folders
        order: list[Split] = [split] if split == "test" else [split, "train", "val"]
        return list(dict.fromkeys([*(f for s in order for f in self.folders.get(s, [])), base]))

    def _frame(self, name: str) -> Frame:
        return frame.read(self.tree.root / name, self._is_image)

    def _is_image(self, cell: str) -> bool:
        return bool(self.files.find(cell, self._bases("train", self.base) + self.folders.get("test", [])))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.tree.root).as_posix() if path.is_relative_to(self.tree.root) else str(path)


def _unique_ids(frame: Frame, column: str) -> list[str]:
    """The cells of a column of IDs; `DataError` for one that is empty or stands twice."""
    first: dict[str, int] = {}
    for line, name in zip(frame.lines, frame.cells[column], strict=True):
        csvfile.check_cell(frame.path, line, column, name)
        if name in first:
            raise DataError(f"{frame.path}: ID {name!r} on lines {first[name]} and {line}; keep one of them")
        first[name] = line
    return [names.normal(name) for name in first]
