"""A look at every image before training starts, so that a damaged one is found now and not in the fifth epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config.errors import DataError
from config.sections.data import Data
from data.cache.images import Images
from data.cores import cores
from data.pixels import Pixels

_SHOWN = 5


def bad_images(data: Data, paths: Sequence[Path], images: Images) -> None:
    """Decode every image once before training, unless `data.on_bad_image` is skip; `images` may cache the pixels.

    With error, a `DataError` lists the first unreadable ones and how many there are; with partial, the truncated ones
    are printed.
    """
    if data.on_bad_image == "skip":
        return
    faults = [text for text in faults_of(paths, images, data.workers) if text]
    if faults and data.on_bad_image == "error":
        raise DataError(_some(faults))
    cut = [images.truncated[path] for path in paths if path in images.truncated]
    if cut:
        print(f"truncated images: {len(cut)}, trained on as far as they go: {_some(cut)}")


def faults_of(paths: Sequence[Path], images: Callable[[Path], Pixels], workers: int = 0) -> list[str]:
    """For each image what is wrong with it, "" where it can be read."""

    def fault(path: Path) -> str:
        try:
            images(path)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers or cores()) as pool:
        return list(pool.map(fault, paths))


def _some(lines: Sequence[str]) -> str:
    rest = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
    return f"{'; '.join(lines[:_SHOWN])}{rest}"
