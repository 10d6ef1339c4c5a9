"""From a folder or a CSV to a table of images and labels. Pixels are not looked at here (see `data.images`).

No path of a table leads out of the folder that was given: not by `..`, not by an absolute path, not by a link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from data import csvfile

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .avif .heic .heif .jp2 .pbm .pgm .ppm .pnm".split()  # noqa: SIM905
)
_LAYOUTS = "give a folder with train.csv (ID,target) and train/, or one with a folder of images for each class"


@dataclass(frozen=True, eq=False)
class Table:
    """The images of a data set in a fixed order.

    `labels` is int64 `[N]`, a position in `class_names`, or -1 where it is unknown. `ids` are as in the CSV, or the
    path below the folder with `/` between its parts. `turns` says how files are to be turned once they are decoded
    (OpenCV's rotate codes), `groups` int64 `[N]` which images no fold may part, None for each by itself; both are
    decisions about the data (see `data.audit`) and not read from it.
    """

    ids: list[str]
    paths: list[Path]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    root: Path
    turns: Mapping[Path, int] = field(default_factory=dict)
    groups: NDArray[np.int64] | None = None


def load(root: Path | str, id_column: str = "ID", target_column: str = "target", keep_missing: bool = False) -> Table:
    """The training set at `root`: train.csv with train/, or class folders in `root` or in `root/train`.

    Class names are sorted, as numbers where all are integers. Raises `DataError` for whatever cannot be trained on.
    With `keep_missing` a line of train.csv whose image is gone stays, and its path is where it would be.
    """
    root = _folder(root)
    listed = root / "train.csv"
    if listed.is_file():
        return _labelled(listed, id_column, target_column, keep_missing)
    inner = root / "train"
    return _from_class_folders(inner if inner.is_dir() else root)


def load_test(source: Path | str, id_column: str = "ID") -> Table:
    """Images to predict, with labels -1: a CSV, a folder with test.csv, or a folder searched through in sorted order.

    The images of a CSV lie in `test/` beside it or beside it. A folder that has `test/` but no test.csv is searched
    through there only, so that a training set beside it is left alone.
    """
    source = Path(source)
    if source.suffix.lower() == ".csv":
        return _unlabelled(source, id_column)
    root = _folder(source)
    if (root / "test.csv").is_file():
        return _unlabelled(root / "test.csv", id_column)
    base = root / "test" if (root / "test").is_dir() else root
    paths = list(_search(base))
    if not paths:
        raise DataError(f"{base}: holds no images; looked for {', '.join(sorted(SUFFIXES))} in all its folders")
    return _table(base, [path.relative_to(base).as_posix() for path in paths], paths, None)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in order: by value where all are integers, by text otherwise."""
    distinct = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def _labelled(listed: Path, id_column: str, target_column: str, keep_missing: bool) -> Table:
    rows = csvfile.read(listed, [id_column, target_column])
    ids = _distinct(listed, [(row.line, row.cells[id_column]) for row in rows])
    paths = _locate(listed, ids, (listed.parent / "train", listed.parent), keep_missing)
    return _table(listed.parent, ids, paths, [row.cells[target_column] for row in rows], listed)


def _unlabelled(listed: Path, id_column: str) -> Table:
    rows = csvfile.read(listed, [id_column])
    ids = _distinct(listed, [(row.line, row.cells[id_column]) for row in rows])
    return _table(listed.parent, ids, _locate(listed, ids, (listed.parent / "test", listed.parent)), None)


def _from_class_folders(base: Path) -> Table:
    entries = [entry for entry in sorted(base.iterdir()) if not entry.name.startswith((".", "__"))]
    if not entries:
        raise DataError(f"{base}: is empty; {_LAYOUTS}")
    folders = [entry for entry in entries if entry.is_dir()]
    found = {folder.name: list(_search(folder, base)) for folder in folders}
    if not any(found.values()):
        raise DataError(f"{base}: no train.csv and no class folders with images; {_LAYOUTS}")
    for name, paths in found.items():
        if not paths:
            raise DataError(f"{base / name}: a class folder without images; add some or remove the folder")
    targets = [name for name, paths in found.items() for _ in paths]
    paths = [path for group in found.values() for path in group]
    return _table(base, [path.relative_to(base).as_posix() for path in paths], paths, targets)


def _table(
    root: Path, ids: list[str], paths: list[Path], targets: Sequence[str] | None, source: Path | None = None
) -> Table:
    if targets is None:
        return Table(ids, paths, np.full(len(ids), -1, dtype=np.int64), (), root)
    names = sort_classes(targets)
    if len(names) < 2:
        raise DataError(f"{source or root}: only one class, {names[0]!r}; a classifier needs images of two or more")
    number = {name: i for i, name in enumerate(names)}
    return Table(ids, paths, np.array([number[name] for name in targets], dtype=np.int64), names, root)


def _folder(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path}: {found}; {_LAYOUTS}")
    return path


def _distinct(listed: Path, lines: list[tuple[int, str]]) -> list[str]:
    first: dict[str, int] = {}
    for line, name in lines:
        if name in first:
            raise DataError(f"{listed}: ID {name!r} on lines {first[name]} and {line}; keep one of them")
        first[name] = line
    return list(first)


def _locate(listed: Path, ids: list[str], bases: tuple[Path, ...], keep_missing: bool = False) -> list[Path]:
    """The file of each ID, with or without its suffix, in the first of `bases` that has it.

    With `keep_missing` one that has none stands in the first of them, unless there is no image at all.
    """
    here = [base for base in bases if base.is_dir()]
    listings: dict[Path, dict[str, list[Path]]] = {}
    found = [_find(listed, name, here, listings) for name in ids]
    missing = [name for name, path in zip(ids, found, strict=True) if path is None]
    if missing and not (keep_missing and len(missing) < len(ids)):
        places = " or ".join(str(base) for base in here)
        raise DataError(
            f"{listed}: {len(missing)} of {len(ids)} IDs have no image in {places} (first: {', '.join(missing[:3])}); "
            "add the files or remove the lines"
        )
    paths = [path or here[0] / name for name, path in zip(ids, found, strict=True)]
    owner: dict[Path, str] = {}
    for name, path in zip(ids, paths, strict=True):
        if owner.setdefault(path, name) != name:
            raise DataError(f"{listed}: IDs {owner[path]!r} and {name!r} are both {path}; keep one of them")
    return paths


def _find(listed: Path, name: str, bases: list[Path], listings: dict[Path, dict[str, list[Path]]]) -> Path | None:
    relative = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if relative.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{listed}: ID {name!r} leads out of the folder; name images by their path inside it")
    for base in bases:
        folder = base / relative.parent
        if folder not in listings:
            listings[folder] = _listing(folder)
        candidates = listings[folder].get(relative.name, [])
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            raise DataError(f"{listed}: ID {name!r} fits {names} in {folder}; write it with its suffix")
        if candidates:
            return _inside(candidates[0], base)
    return None


def _listing(folder: Path) -> dict[str, list[Path]]:
    """Files of one folder by full name, and images by name without suffix too."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    listing: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            listing.setdefault(path.stem, []).append(path)
    return listing | {path.name: [path] for path in files}


def _inside(path: Path, base: Path) -> Path:
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(base)):
        raise DataError(f"{path}: is a link out of {base}; put the file itself there")
    return path


def _search(folder: Path, base: Path | None = None) -> Iterator[Path]:
    """Images below `folder` in sorted order, hidden ones left out; `DataError` for a link out of `base`."""
    base = base or folder
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            if not _inside(entry, base).is_symlink():
                yield from _search(entry, base)
        elif entry.suffix.lower() in SUFFIXES:
            yield _inside(entry, base)
