"""A folder of class folders, with or without splits above them: which layout it is, and the samples that it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from posixpath import basename

from config.errors import DataError
from config.text import counted
from data import names
from data.sources import splits, walk
from data.sources.listing import Listing, Sample, some
from data.sources.splits import Split
from data.sources.walk import Tree

HELP = (
    "give a folder with train.csv (ID,target) and train/, or one with a folder of images for each class; see "
    "docs/reference/data_layouts.md"
)


def split_folders(tree: Tree, base: str) -> dict[Split, list[str]]:
    """The folders of each split below `base`, by path; a test folder counts where there is none for training."""
    inner = sorted(tree.below(base).keys() - {""})
    alone = {name: split for name in inner if (split := splits.of_name(name))}
    by_split: dict[Split, list[str]] = {}
    for name, split in (splits.of_names(inner) or alone).items():
        by_split.setdefault(split, []).append(f"{base}{name}/")
    return by_split


def read(tree: Tree, classes: Sequence[str] = ()) -> Listing:
    """The samples of class folders; `DataError` where the folder has none, or has another layout.

    Folders whose names are all among `classes`, which the user names, are classes whatever else they could be.
    """
    base, folders = tree.base, tree.below(tree.base)
    if not folders:
        raise _no_images(tree, base)
    roles = {} if classes and set(classes) <= set(folders) else splits.of_names(folders.keys() - {""})
    training = sorted(name for name, split in roles.items() if split == "train")
    if len(training) > 1:
        raise DataError(
            f"{tree.root}: {training[0]}/ and {training[1]}/ are both training folders; set data.root to one"
        )
    if training:
        train = unwrapped(tree, f"{base}{training[0]}/")
        if tree.below(train).keys() - {""}:
            return _of_splits(tree, base, train, roles)
        if not folders.keys() - roles.keys() - {""}:
            raise _unlabelled(tree, train)
    elif len(folders) > 1 and all(splits.of_name(name) for name in folders if name) and not classes:
        shown = ", ".join(f"{name}/" for name in sorted(folders) if name)
        raise DataError(
            f"{tree.root}: {shown} look like splits, and none is for training; if these are the classes, set "
            f"data.classes [{', '.join(sorted(folders.keys() - {''}))}]"
        )
    _check_inner_splits(tree, base, folders)
    if set(folders) == {""}:
        raise _unlabelled(tree, base)
    plain_names = [name for name in sorted(folders) if splits.says_nothing(name)]
    if plain_names and not classes:
        raise DataError(
            f"{tree.root / base}: {some([f'{name}/' for name in sorted(folders) if name])} would be classes, and "
            f"{plain_names[0]}/ names none; set data.table or data.label_pattern, or data.classes to the folders that "
            "are classes"
        )
    samples = list(labelled(tree, base, "train", base))
    origin = f"class folders in {base}" if base else "class folders"
    used = frozenset(walked(tree, samples))
    return Listing(tree.root / base, origin, samples, used=used, notes=tuple(_nested(tree, base)))


def by_pattern(tree: Tree, pattern: str) -> Listing:
    """The samples whose file names hold their label, as the group of the regular expression `pattern`."""
    base = tree.base
    roles = split_folders(tree, base)
    keep = tuple(roles.get("train", [base]))
    others = tuple(name for split, folders in roles.items() if split != "train" for name in folders)
    images = [name for name in tree.images if name.startswith(keep) and not (others and name.startswith(others))]
    tree.check_links(base)
    samples = []
    for name in images:
        match = re.search(pattern, name if "/" in pattern else basename(name))
        if match and match.group(1):
            samples.append(Sample(names.of_path(name[len(base) :]), tree.root / name, names.of_path(match.group(1))))
    if not samples:
        example = basename(images[0]) if images else "none"
        raise DataError(
            f"data.label_pattern: {pattern!r} fits none of {counted(len(images), 'file name')} below {tree.root} (such "
            f"as {example}); it is searched in the file name, or in the path where it has a slash, and its one group "
            "is the label"
        )
    rest = counted(len(images) - len(samples), "file name does", "file names do")
    notes = (f"{rest} not fit data.label_pattern: left out",) if len(images) > len(samples) else ()
    used = frozenset(walked(tree, samples))
    return Listing(tree.root / base, "labels in file names", samples, used=used, notes=notes)


def unwrapped(tree: Tree, base: str) -> str:
    """`base`, or the folder of folders below it that is all that it holds (seg_train/seg_train/)."""
    inner = tree.below(base).keys()
    deeper = f"{base}{next(iter(inner), '')}/"
    if len(inner) != 1 or "" in inner or not tree.below(deeper).keys() - {""}:
        return base
    return unwrapped(tree, deeper)


def walked(tree: Tree, samples: Sequence[Sample]) -> list[str]:
    """The relative paths of samples that are files of the tree."""
    start = 0 if tree.root == Path() else len(str(tree.root).rstrip("/")) + 1
    return [str(sample.path)[start:] for sample in samples]


def _of_splits(tree: Tree, base: str, train: str, roles: dict[str, Split]) -> Listing:
    samples = list(labelled(tree, train, "train", train))
    classes, notes, named = {sample.label for sample in samples}, list[str](), {"train": train}
    for name in sorted(roles):
        split = roles[name]
        if split not in ("val", "test") or split in named:
            continue
        folder = unwrapped(tree, f"{base}{name}/")
        of_split = list(labelled(tree, folder, split, base))
        inner = {sample.label for sample in of_split}
        if split == "val" and not inner & classes:
            notes.append(f"{name}/ has no class folders of {train}, so it is not used; a split is drawn from {train}")
            continue
        if split == "val" and inner - classes:
            other = sorted(map(str, inner - classes))
            raise DataError(
                f"{tree.root / folder}: its folder {other[0]!r} is no class of {tree.root / train}; rename it, or move "
                f"{name}/ elsewhere"
            )
        named[split] = folder
        if split == "val":
            samples += of_split
    origin = f"class folders in {train}" + (f" and {named['val']}" if "val" in named else "")
    notes += _nested(tree, train)
    return Listing(tree.root / train, origin, samples, used=frozenset(walked(tree, samples)), notes=tuple(notes))


def labelled(tree: Tree, folder: str, split: Split, relative_to: str) -> Iterable[Sample]:
    """The images in class folders below `folder`, with IDs relative to `relative_to`."""
    tree.check_links(folder)
    for name in tree.empty:
        if name.startswith(folder) and "/" not in name[len(folder) :].rstrip("/"):
            raise DataError(f"{tree.root / name}: a class folder without images; add some or remove the folder")
    for name in tree.images:
        if name.startswith(folder) and (label := walk.top(name, folder)):
            yield Sample(names.of_path(name[len(relative_to) :]), tree.root / name, names.of_path(label), split)


def _nested(tree: Tree, base: str) -> Iterable[str]:
    """A line where class folders hold nothing but folders, which may be the classes that were meant."""
    folders = [name for name in tree.below(base) if name]
    inner = {name: tree.below(f"{base}{name}/").keys() for name in folders}
    if folders and all("" not in by_name and len(by_name) > 1 for by_name in inner.values()):
        first, count = sorted(inner[folders[0]])[0], sum(map(len, inner.values()))
        yield (
            f"classes are the {len(folders)} first folders ({some(folders)}), not the {count} inside of them ({first}, "
            "...); for those set data.label_pattern '([^/]+)/[^/]+$'"
        )


def _check_inner_splits(tree: Tree, base: str, folders: dict[str, list[str]]) -> None:
    """`DataError` for CLASS/train/x: the splits would be trained on alike."""
    splits_of = {
        name: splits.of_names({walk.top(image, f"{base}{name}/") for image in images} - {""})
        for name, images in folders.items()
        if name
    }
    inner = [name for name, roles in splits_of.items() if len(set(roles.values())) > 1]
    if inner and 2 * len(inner) >= len(splits_of):
        shown = " and ".join(f"{inner[0]}/{name}/" for name in sorted(splits_of[inner[0]]))
        raise DataError(
            f"{tree.root / base}: class folders hold split folders ({shown}), and training would mix the splits; move "
            f"them to train/{inner[0]}/ and so on"
        )


def _no_images(tree: Tree, base: str) -> DataError:
    if tree.archives:
        return DataError(f"{tree.root}: holds no images, but {some(tree.archives)}; unpack it first")
    if tree.outside:
        return walk.outside(tree.root / tree.outside[0], tree.root)
    if not tree.tables and not tree.others and tree.empty in ([], [""]):
        return DataError(f"{tree.root}: is empty; {HELP}")
    return DataError(f"{tree.root / base}: no train.csv and no class folders with images; {HELP}")


def _unlabelled(tree: Tree, folder: str) -> DataError:
    """What to do with images that lie in no class folder: a table, or a pattern where their names look like one."""
    images = [basename(name) for name in tree.images if name.startswith(folder)]
    pattern = r"^(.+)[._ -]\d+\.[A-Za-z]+$"  # cat.0.jpg, Abyssinian_100.jpg
    labels = [match.group(1) for name in images if (match := re.search(pattern, name))]
    fits = len(labels) == len(images) and 2 <= len(set(labels)) <= max(2, len(labels) // 2)
    advice = f"set data.label_pattern '{pattern}'" if fits else "set data.table to the file that has the labels"
    return DataError(
        f"{tree.root / folder}: no class folders, but {counted(len(images), 'image')} such as "
        f"{names.of_path(images[0])}, and no table names their labels; {advice}, or {HELP}"
    )


def plain(tree: Tree, base: str) -> list[Sample]:
    """All images below `base`, unlabelled, with IDs relative to it."""
    tree.check_links(base)
    return [
        Sample(names.of_path(name[len(base) :]), tree.root / name, None, "test")
        for name in tree.images
        if name.startswith(base)
    ]
