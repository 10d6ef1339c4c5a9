"""A look at every image before training starts, so that a damaged one is found now and not in the fifth epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config.errors import DataError
from data.decode import Pixels

_SHOWN = 5


def readable(paths: Sequence[Path], images: Callable[[Path], Pixels], workers: int = 0) -> None:
    """Decode every image once through `images`, which may keep the pixels of a small set for the training to come.

    A `DataError` lists the first unreadable ones and how many there are.
    """
    faults = [text for text in found(paths, images, workers) if text]
    if faults:
        rest = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise DataError(f"{'; '.join(faults[:_SHOWN])}{rest}")


def found(paths: Sequence[Path], images: Callable[[Path], Pixels], workers: int = 0) -> list[str]:
    """For each image what is wrong with it, "" where it can be read."""

    def fault(path: Path) -> str:
        try:
            images(path)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(fault, paths))
