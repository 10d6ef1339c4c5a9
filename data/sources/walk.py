"""What lies in a folder: its images, tables and packed files by relative path, and what is passed over, counted.

Hidden files, `__MACOSX` and Tandem's own outputs (runs, audits) are no data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from config.errors import DataError
from data.decode.formats import SUFFIXES

TABLES = (".csv", ".tsv", ".jsonl", ".txt")
PACKED = (".parquet", ".tar", ".npz")
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_LIST_OF = {  # `Tree`'s list for files of a suffix
    **dict.fromkeys(ARCHIVES, "archives"),
    **dict.fromkeys(PACKED, "packed"),
    **dict.fromkeys(TABLES, "tables"),
    **dict.fromkeys(SUFFIXES, "images"),
}
_JUNK = frozenset(("__MACOSX", "__pycache__", "@eaDir", "Thumbs.db", "desktop.ini"))
# Files that together say that a folder was written by Tandem.
_OUTPUTS = (
    {"config.yaml", "environment.json"},
    {"config.yaml", "folds.csv"},
    {"config.yaml", ".lock"},
    {"campaign.yaml"},
    {"audit.csv", "audit.html"},
    {"model.safetensors", "manifest.json"},
)


@dataclass
class Tree:
    """The files below `root`, as POSIX paths relative to it, in sorted order, folders and files together.

    `outside` are links that lead out of `root`, `empty` folders that hold nothing at all, `outputs` those of Tandem.
    `others` are files of no known kind.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    _below: dict[str, dict[str, list[str]]] = field(default_factory=dict, repr=False)

    @cached_property
    def base(self) -> str:
        """The folder of class folders or splits: the root, or one below folders that hold nothing else, ending in a
        slash."""
        return self._descend("", stop_at_tables=False)

    @cached_property
    def table_base(self) -> str:
        """The folder of a table and its images, likewise: no deeper than the first one with a table."""
        return self._descend("", stop_at_tables=True)

    def below(self, base: str) -> dict[str, list[str]]:
        """The images below `base` by the first folder of their paths; those directly in it under ""."""
        if base not in self._below:
            by_folder: dict[str, list[str]] = {}
            for name in self.images:
                if name.startswith(base):
                    by_folder.setdefault(top(name, base), []).append(name)
            self._below[base] = by_folder
        return self._below[base]

    def _descend(self, base: str, stop_at_tables: bool) -> str:
        inner = self.below(base).keys() | {top(name, base) for name in self.packed if name.startswith(base)}
        tables = [name for name in self.tables if name.startswith(base) and not name.endswith(".txt")]
        if len(inner) != 1 or "" in inner or (stop_at_tables and any(not top(name, base) for name in tables)):
            return base
        deeper = f"{base}{inner.pop()}/"
        wraps = self.below(deeper).keys() - {""} or any(top(name, deeper) for name in self.packed)
        # A single folder of images is a class, or a split, and wraps nothing.
        return self._descend(deeper, stop_at_tables) if wraps or any(t.startswith(deeper) for t in tables) else base

    def check_links(self, base: str) -> None:
        """`DataError` for a link below `base` that leads out of the root."""
        for name in self.outside:
            if name.startswith(base):
                raise outside(self.root / name, self.root)


def outside(path: Path, root: Path) -> DataError:
    """The refusal of a link that leads out of the data set."""
    return DataError(f"{path}: is a link out of {root}; put the file itself there, or set data.follow_links")


def walk(root: Path, follow_links: bool = False) -> Tree:
    """Everything below `root`. Links are followed where they stay within it, or anywhere with `follow_links`.

    A link to a folder that it lies in is not followed. `DataError` for a folder that cannot be read.
    """
    tree = Tree(root)
    _walk(str(root), "", tree, follow_links, (os.path.realpath(root),))
    return tree


def _walk(folder: str, prefix: str, tree: Tree, follow_links: bool, above: tuple[str, ...]) -> bool:
    """Add what lies in `folder`, whose real path ends `above`; whether it is one of Tandem's own."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    if prefix and any(names <= {entry.name for entry in entries} for names in _OUTPUTS):
        return True
    files, folders, names = 0, 0, list[str]()
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _JUNK:
            continue
        name, target = prefix + entry.name, os.path.join(above[-1], entry.name)  # noqa: PTH118  # much faster
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not follow_links and os.path.commonpath((above[0], target)) != above[0]:
                tree.outside.append(name)
                files += 1
                continue
            if target in above:
                continue
        if entry.is_dir():
            folders += 1
            if _walk(entry.path, f"{name}/", tree, follow_links, (*above, target)):
                names.append(f"{name}/")
        else:
            files += 1
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  # as above
            getattr(tree, _LIST_OF.get(suffix, "others")).append(name)
    if prefix and names and len(names) == folders and not files:
        return True
    tree.outputs += names
    if not files and not folders:
        tree.empty.append(prefix)
    return False


def top(name: str, base: str = "") -> str:
    """The first folder of a path below `base`, "" for a file directly in it."""
    head, slash, _ = name[len(base) :].partition("/")
    return head if slash else ""


def parent(name: str) -> str:
    """The folder of a relative path with a slash at its end, "" for the root."""
    folder = PurePosixPath(name).parent.as_posix()
    return "" if folder == "." else folder + "/"
