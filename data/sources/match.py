"""From the names in a table to the files that they mean: with or without suffix, folders, case, in NFC or NFD."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from posixpath import basename, splitext

from config.errors import DataError
from data import names
from data.sources import walk
from data.sources.walk import Tree


class Files:
    """The images of a tree, found by the names that tables give them."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self._paths: dict[str, list[str]] = {}  # by path, with and without suffix
        self._ends: dict[str, list[str]] = {}  # by file name, likewise
        for image in tree.images:
            path = names.key(image)
            stem = splitext(path)[0]
            for table, text in ((self._paths, path), (self._paths, stem)):
                table.setdefault(text, []).append(image)
            for text in (basename(path), basename(stem)):
                self._ends.setdefault(text, []).append(image)
        self._others = {names.key(file): file for file in tree.others}  # taken where a table names them in full

    def find(self, name: str, bases: Sequence[str], avoid: Sequence[str] = ()) -> list[str]:
        """The images that `name` may mean: in the first of the folders `bases` that has it, else anywhere below the
        root but in the folders `avoid`; [] for none, several where it is not clear which."""
        wanted = self._relative(name)
        for base in bases:
            paths = self._paths.get(names.key(base) + wanted)
            if paths:
                return self._exact(paths, base, name)
            if names.key(base) + wanted in self._others:
                return [self._others[names.key(base) + wanted]]
        keys = {image: names.key(image) for image in self._ends.get(basename(wanted), ())}
        ends = [
            image
            for image, key in keys.items()
            if any(f"/{path}".endswith(f"/{wanted}") for path in (key, splitext(key)[0]))
            and not image.startswith(tuple(avoid))
        ]
        return self._exact(ends, "", name)

    def locate(self, table: Path, name: str, bases: Sequence[str], avoid: Sequence[str] = ()) -> str | None:
        """The image that `name` means, None for none; `DataError` for a name that leads out or fits several."""
        relative = self._relative(name)
        windows = PureWindowsPath(relative)
        if relative.startswith("/") or windows.drive or windows.root or ".." in windows.parts:
            raise DataError(f"{table}: ID {name!r} leads out of the folder; name images by their path inside it")
        images = self.find(name, bases, avoid)
        if len(images) > 1:
            folders = {walk.parent(image) for image in images}
            if len(folders) == 1:
                shown, where, remedy = [basename(image) for image in images], self.tree.root / folders.pop(), "suffix"
            else:
                shown, where, remedy = images, self.tree.root, "folder, or set data.images"
            raise DataError(f"{table}: ID {name!r} fits {', '.join(shown[:3])} in {where}; write it with its {remedy}")
        if not images:
            self._check_links(relative, bases)
        return images[0] if images else None

    def nearest(self, name: str) -> str:
        """The image whose name is nearest, "" where none is near."""
        wanted = basename(self._relative(name))
        near = difflib.get_close_matches(wanted, list(self._ends)[:20_000], n=1, cutoff=0.75)
        return self._ends[near[0]][0] if near else ""

    def _relative(self, name: str) -> str:
        """The key of a name; of an absolute one inside the root, what follows the root."""
        text = names.key(name)
        for root in {names.key(str(self.tree.root)), names.key(os.path.realpath(self.tree.root))}:
            if text.startswith(root.rstrip("/") + "/") and root.startswith("/"):
                return text[len(root.rstrip("/")) + 1 :]
        return text

    def _check_links(self, relative: str, bases: Sequence[str]) -> None:
        """`DataError` where a name lies behind a link that leads out of the root."""
        for link in self.tree.outside:
            for base in (*bases, ""):
                key, wanted = names.key(link), names.key(base) + relative
                if wanted in (key, splitext(key)[0]) or wanted.startswith(key + "/"):
                    raise walk.outside(self.tree.root / (base + relative), self.tree.root)

    @staticmethod
    def _exact(paths: Sequence[str], base: str, name: str) -> list[str]:
        """Of several images, the one that is named to the letter, with its suffix or in its own case."""
        plain = names.normal(name).replace("\\", "/")
        if len(paths) < 2:
            return list(paths)
        same = [image for image in paths if names.normal(image[len(base) :]) == plain]
        alike = [image for image in paths if splitext(names.normal(image[len(base) :]))[0] == plain]
        return same or (alike if len(alike) == 1 else list(paths))
