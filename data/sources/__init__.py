"""From a data set as it was downloaded to one table: folders, tables, Parquet, shards, arrays. No pixel is looked at.

`load` gives the images to train on, `load_test` those to predict. No path of a table leads out of the folder that was
given, unless `data.follow_links` says so: not by `..`, not by an absolute path, not by a link.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from posixpath import splitext
from typing import Literal

from config.errors import DataError
from config.sections.data import Data
from config.text import counted
from data.decode.formats import SUFFIXES as SUFFIXES
from data.sources import arrays, folders, listing, parquet, remote, shards, walk
from data.sources.listing import Listing
from data.sources.table import Table as Table
from data.sources.table import sort_classes as sort_classes
from data.sources.tables import Tables
from data.streaming import shard_cache


def load(data: Data | Path | str) -> Table:
    """The training images of a data set, with its own validation split, if any, in `fold_of`.

    Class names are sorted, as numbers where all are integers. Raises `DataError` for whatever cannot be trained on.
    Unless `on_bad_image` is error, a row of a table whose image is gone stays, and its path is where it would be.
    """
    source = _Source(data)
    labelled = source.labelled()
    test, notes = None, labelled.notes
    try:
        test = source.test(labelled)
    except DataError as error:
        notes = (*notes, f"the test images are not used: {error}")
    used = test.used if test else frozenset[str]()
    used |= {name for name in (source.tables.sample_submission(),) if name}
    return listing.table_of(replace(labelled, notes=notes), source.tree, len(test.samples) if test else 0, used)


def test_split(data: Data | Path | str) -> Table | None:
    """The images to predict, with labels -1, where the data set says which they are; None where it does not."""
    source = _Source(data)
    try:
        labelled: Listing | None = source.labelled()
    except DataError:  # a test set may lie by itself
        labelled = None
    test = source.test(labelled)
    return listing.test_table(test) if test else None


def load_test(source: Data | Path | str, id_column: str | None = None) -> Table:
    """Images to predict, with labels -1: the rows of a table, the test split of a data set, or else every image below a
    folder in sorted order."""
    data = source if isinstance(source, Data) else Data(root=Path(source), id_column=id_column)
    root = data.root
    if root.suffix.lower() in walk.TABLES and not root.is_dir():
        if not root.is_file():
            raise DataError(f"{root}: cannot be read (it does not exist); check the path")
        beside = data.model_copy(update={"root": root.parent})
        rows = Tables(walk.walk(root.parent, data.follow_links), beside).read_test(root.name)
        return listing.test_table(rows)
    table = test_split(data)
    if table:
        return table
    tree = _Source(data).tree
    samples = folders.plain(tree, "")
    if not samples:
        raise DataError(f"{tree.root}: holds no images; looked for {', '.join(sorted(SUFFIXES))} in all its folders")
    return listing.test_table(Listing(tree.root, "images", samples))


def load_labelled(
    data: Data | Path | str, split: Literal["train", "val", "test", "all"] | None = None
) -> tuple[Listing, str]:
    """The labelled images of one of a data set's own splits, to evaluate on, and which split it is; `all` is training
    and validation, or images of no split.

    None takes the test split where it has labels, else the validation split, else all. A note counts the images of the
    split that have no label. Raises `DataError` where the split is missing, or has no labels.
    """
    source = _Source(data)
    labelled: Listing | None = None
    reason: DataError | None = None
    try:
        labelled = source.labelled()
    except DataError as error:  # a test set may lie by itself
        reason = error
    for name in [split] if split else ["test", "val", "all"]:
        listing_of_split = source.split(labelled, name)
        some = [sample for sample in listing_of_split.samples if sample.label] if listing_of_split else []
        if listing_of_split and some:
            missing = len(listing_of_split.samples) - len(some)
            notes = (f"{counted(missing, 'image')} without a label left out",) if missing else ()
            return replace(listing_of_split, samples=some, notes=notes), name
    if reason:
        raise reason
    named = sorted({sample.split for sample in labelled.samples if sample.label}) if labelled else []
    wanted = f"no image of its {split} split has a label" if split else "no image has a label"
    raise DataError(
        f"{source.data.root}: {wanted} (splits with labels: {', '.join(named) or 'none'}); choose another --split, or "
        "set data.root to the labelled images"
    )


def sample_submission(data: Data) -> Path | None:
    """The sample submission of the data set, None where there is none."""
    source = _Source(data)
    name = source.tables.sample_submission()
    return source.tree.root / name if name else None


class _Source:
    """A data set's files, and which reader suits them."""

    def __init__(self, data: Data | Path | str):
        data = data if isinstance(data, Data) else Data(root=Path(data))
        self.streamed = remote.url(data.root) if data.streaming else None
        if self.streamed:
            self.data, self.tree = data, walk.Tree(shard_cache.folder())
            return
        address = remote.url(data.root)
        root = remote.fetch(address) if address else data.root
        self.file = ""
        if root.is_file() and root.suffix.lower() in (*walk.TABLES, *walk.PACKED):
            self.file, root = root.name, root.parent
        if not root.is_dir():
            if root.suffix.lower() in walk.ARCHIVES and root.exists():
                raise DataError(f"{data.root}: is an archive; unpack it, and give the folder")
            fault = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"{data.root}: {fault}; {folders.HELP}")
        table = Path(self.file) if self.file and Path(self.file).suffix.lower() in walk.TABLES else data.table
        self.data = data.model_copy(update={"root": root, "table": table})
        self.tree = walk.walk(root, data.follow_links)

    @cached_property
    def tables(self) -> Tables:
        """The tables beside the images."""
        return Tables(self.tree, self.data)

    def labelled(self) -> Listing:
        """The samples of the first reader that suits: what the settings name, a table, packed files, class folders."""
        if self.streamed:
            return shards.read_remote(self.streamed, self.data)
        packed = [self.file] if splitext(self.file)[1].lower() in walk.PACKED else self.tree.packed
        if self.data.streaming:
            if not packed or not all(name.endswith(".tar") for name in packed):
                raise DataError(
                    f"{self.data.root}: data.streaming reads tar shards (WebDataset) alone; set it to false"
                )
            return self._packed(packed)
        if self.data.label_pattern:
            return folders.by_pattern(self.tree, self.data.label_pattern)
        if packed and (self.file or not self.tree.images) and not self.data.table:
            return self._packed(packed)
        listed = self.tables.read()
        if listed:
            return listed
        try:
            listed = folders.read(self.tree, self.data.classes)
        except DataError as error:
            if packed:
                return self._packed(packed)
            raise DataError("; ".join([str(error), *self.tables.reasons])) from error
        return replace(listed, notes=(*listed.notes, *self.tables.reasons))

    def test(self, labelled: Listing | None) -> Listing | None:
        """The samples to predict: of the labelled samples' own test split, of a test table, or of a test folder."""
        rows = _of_splits(labelled, ["test"]) or self.tables.find_test()
        if rows:
            return rows
        for folder in folders.split_folders(self.tree, self.tree.base).get("test", []):
            base = folders.unwrapped(self.tree, folder)
            used = frozenset(name for name in self.tree.images if name.startswith(base))
            if not (labelled and used & labelled.used):
                return Listing(self.tree.root / base, base, folders.plain(self.tree, base), used=used)
        return None

    def split(self, labelled: Listing | None, name: str) -> Listing | None:
        """The images of one split, or of `all` but test, with the labels that they have; None where it has none."""
        rows = _of_splits(labelled, ["train", "val"] if name == "all" else [name])
        return rows or (self._labelled_test(labelled) if name == "test" else None)

    def _labelled_test(self, labelled: Listing | None) -> Listing | None:
        """A test table with a column of labels, or class folders in a test folder."""
        asked = self.data.target_column
        if labelled and labelled.target_column in labelled.columns:  # its test table has that column, or no labels
            asked = labelled.target_column
        rows = self.tables.read_labelled_test(asked)
        if rows:
            return rows
        for folder in folders.split_folders(self.tree, self.tree.base).get("test", []):
            base = folders.unwrapped(self.tree, folder)
            samples = list(folders.labelled(self.tree, base, "test", base))
            if samples:
                return Listing(self.tree.root / base, f"class folders in {base}", samples)
        return None

    def _packed(self, files: list[str]) -> Listing:
        root, kinds = self.tree.root, {splitext(name)[1].lower() for name in files}
        if len(kinds) > 1:
            raise DataError(f"{root}: holds {' and '.join(sorted(kinds))} files; set data.root to one of them")
        if kinds == {".parquet"}:
            listed = parquet.read(root, files, self.data)
        elif kinds == {".tar"}:
            listed = shards.read(root, files, self.data)
        elif len(files) > 1:
            raise DataError(f"{root}: holds {len(files)} .npz files; set data.root to one of them")
        else:
            listed = arrays.read(root / files[0])
        return replace(listed, used=frozenset(files))


def _of_splits(labelled: Listing | None, splits: list[str]) -> Listing | None:
    """The samples of some splits; None where there are none."""
    samples = [sample for sample in labelled.samples if sample.split in splits] if labelled else []
    return replace(labelled, samples=samples) if labelled and samples else None
