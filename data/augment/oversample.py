"""A copy of a data set in which small classes are filled up with damaged copies of their images, made once and kept.

The settings under `sampling` repeat images while training, each time augmented anew; copies on disk can be looked
at, sorted out, and used by anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from config.errors import DataError
from config.sections.data import Data
from data import csvfile, sources
from data.audit import actions
from data.augment.corrupt import corrupt
from data.cache.images import Images
from data.pixels import encode_jpeg
from data.rng import philox

_HEADER = ("ID", "target", "group")
_QUALITY = 92


def oversample(data: Data, out: Path, min_per_class: int, seed: int = 0) -> dict[str, int]:
    """Write the data set to `out` with at least `min_per_class` images in each class; how many were added to each.

    `out` gets train.csv with columns ID, target and group, and train/. A copy is in the group of its original, for
    `folds.strategy stratified_group`. Raises `DataError` where `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; choose a new folder")
    table = actions.load(data).table
    images = Images.of(data, table.turns, cache_bytes=0)
    added: dict[str, int] = {}
    rows = list(_originals(table, out))
    for label, name in enumerate(table.class_names):
        members = np.flatnonzero(table.labels == label).tolist()
        for number in range(max(min_per_class - len(members), 0)):
            source = members[number % len(members)]
            file = Path(rows[source][0])
            copy = file.with_name(f"{file.stem}__damaged_{number // len(members)}.jpg")
            damaged = corrupt(images(table.paths[source]), philox(seed, "enlarge", source, number))
            (out / "train" / copy).write_bytes(encode_jpeg(damaged, _QUALITY).tobytes())
            rows.append((copy.as_posix(), name, rows[source][2]))
            added[name] = added.get(name, 0) + 1
    csvfile.write(out / "train.csv", _HEADER, rows)
    return added


def _originals(table: sources.Table, out: Path) -> Iterator[tuple[str, str, str]]:
    """Copy the bytes of every image under its ID. Those that the audit's actions turn stay unturned; their damaged
    copies are turned."""
    for name, path, label in zip(table.ids, table.paths, table.labels.tolist(), strict=True):
        windows = PureWindowsPath(name)  # or any other path, which may be absolute inside its data set
        inner = PurePosixPath(*(segment for segment in windows.relative_to(windows.anchor).parts if segment != ".."))
        file = f"{inner}" if inner.suffix == path.suffix else f"{inner}{path.suffix}"
        copy = out / "train" / file
        if copy.exists():
            raise DataError(f"{copy}: would be a copy of two images, the second with ID {name!r}; rename one of them")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())  # it may be a part of a larger file
        yield file, table.class_names[label], file
