"""The whole audit of a data set: every file looked at, copies found, and what follows from both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from config.sections.data import Data
from data import sources
from data.audit import copies, images
from data.audit.copies import Entry
from data.audit.findings import Finding, ordered
from data.audit.images import Measure, Split
from data.audit.survey import Stopped, survey

__all__ = ["Audit", "Stopped", "audit", "test_images"]


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found. `groups` int64 `[N]` numbers the training images: copies of one picture share a number.

    `paths` are the files by (split, ID); `looked` of them were not in the cache; `unreadable` are training images.
    """

    findings: list[Finding]
    measures: list[Measure]
    groups: NDArray[np.int64]
    paths: dict[tuple[str, str], Path]
    unreadable: list[Path]
    looked: int
    seconds: float


def audit(
    train: sources.Table,
    test: sources.Table | None,
    data: Data,
    least: int = images.LEAST,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Audit:
    """Audit the images of `train` and `test`; classes under `least` images are findings. Raises `Stopped`."""
    started = time.monotonic()
    names = [train.class_names[label] if label >= 0 else "" for label in train.labels.tolist()]
    entries = [Entry(name, "train", target) for name, target in zip(train.ids, names, strict=True)]
    entries += [Entry(name, "test", "") for name in (test.ids if test else [])]
    paths = [*train.paths, *(test.paths if test else [])]
    surveyed = survey(paths, data.root, data.pixel_limit, data.workers, stop, progress)
    count = len(train.ids)
    sides = [
        Split("train", train.ids, surveyed.facts[:count], names),
        Split("test", test.ids if test else [], surveyed.facts[count:], [""] * (len(paths) - count)),
    ]
    measures = images.shift(*sides)
    findings = [finding for side in sides if side.ids for finding in images.single(side)]
    findings += (
        images.classes(sides[0], least) + copies.find(entries, surveyed.facts, surveyed.pairs) + images.shifts(measures)
    )
    turned = {name for name, path in zip(train.ids, train.paths, strict=True) if path in train.turns}
    findings = [finding for finding in findings if finding.kind != "wrong_way_up" or finding.id not in turned]
    within = [pair for pair in surveyed.pairs if max(pair.first, pair.second) < count]
    return Audit(
        ordered(findings),
        measures,
        copies.usable(copies.grouped(surveyed.facts[:count], within), train.labels),
        {(entry.split, entry.id): path for entry, path in zip(entries, paths, strict=True)},
        [path for path, facts in zip(train.paths, surveyed.facts, strict=False) if facts.fault],
        surveyed.looked,
        time.monotonic() - started,
    )


def test_images(data: Data) -> sources.Table | None:
    """The test images beside the training images, where the folder says which they are; None where there are none."""
    try:
        return sources.test_split(data)
    except DataError as error:
        print(f"audit: the test images are left out: {error}")
        return None
