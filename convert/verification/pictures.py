"""The real images that conversions are verified and calibrated with, decoded and prepared as by the runner."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import ConvertError, DataError
from convert.command import CALIBRATION, DEMO
from convert.source import Source
from data import sources
from data.augment.transforms import EvalTransform
from data.cache.images import Images
from data.loading.loader import Loader
from data.rng import philox
from data.sources import Table
from models.card import Card

# The images of a batch in each form that an artefact takes.
Pixels = tuple[NDArray[np.uint8], ...]

_BATCH, _BATCH_PIXELS = 16, 16 * 480**2
# Enough for stable ranges of activations, few enough for a minute on two cores.
_DEMO_IMAGES = 100


@contextlib.contextmanager
def opened(images: Path, card: Card) -> Iterator[Table]:
    """The images to verify on: labelled ones where `images` has them, else as for `infer`.

    `DEMO` stands for a hundred of the demo's images, which are written to a temporary folder. Raises `DataError`
    where there are none.
    """
    if images != DEMO:
        yield table(images, card)
        return
    with tempfile.TemporaryDirectory() as folder:
        from data import demo  # which brings scikit-learn

        demo.write(folder)
        digits = sources.load(folder)
        yield chosen(digits, np.arange(min(_DEMO_IMAGES, len(digits.paths))))


def table(images: Path, card: Card) -> Table:
    """See `opened`."""
    try:
        loaded = sources.load(images)
    except DataError:
        return sources.load_test(images)
    return loaded if set(loaded.class_names) & set(card.class_names) else sources.load_test(images)


def calibration(images: Path | None, source: Source) -> Table:
    """At most `CALIBRATION` images for calibration, drawn by class: of `images`, else of the run's own training images.

    Raises `ConvertError` where PATH lies in no run, or the run's images are gone.
    """
    images_used = table(images, source.card) if images is not None else _training_images(source)
    return chosen(images_used, draw(images_used.labels, CALIBRATION))


def draw(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Positions of at most `count` images, as evenly over the classes as they are there; sorted, always the same."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        rank[philox(0, "calibrate", int(label)).permutation(places)] = np.arange(len(places))
    return np.sort(np.argsort(rank, kind="stable")[:count])


def chosen(images: Table, places: NDArray[np.int64]) -> Table:
    """Some of a table's images."""
    ids, paths = [images.ids[k] for k in places], [images.paths[k] for k in places]
    return Table(ids, paths, images.labels[places], images.class_names, images.root)


def batch_size(card: Card) -> int:
    """Images at a time: 16, fewer where they are large or an artefact makes many views of each."""
    return max(1, min(_BATCH, _BATCH_PIXELS // card.most_pixels))


def batches(images: Table, card: Card) -> Iterator[Pixels]:
    """uint8 `[N, S, S, 3]` for each input, N at most `batch_size`, in the table's order."""
    count = batch_size(card)
    order = np.arange(len(images.paths))
    loaders = [
        Loader(images.paths, EvalTransform(prep), prep.size, count, images=Images(0, to_srgb=prep.icc_to_srgb))
        for prep in card.inputs
    ]
    for together in zip(*(loader.epoch(order) for loader in loaders), strict=True):
        yield tuple(batch.images[batch.weight > 0].copy() for batch in together)


def labels(images: Table, card: Card) -> NDArray[np.int64] | None:
    """Positions in the card's classes, -1 for a class it does not have; None when no image has a label."""
    places = {name: k for k, name in enumerate(card.class_names)}
    columns = np.array([places.get(name, -1) for name in images.class_names] + [-1], np.int64)
    matched = columns[images.labels]
    return matched if (matched >= 0).any() else None


def _training_images(source: Source) -> Table:
    root = source.path.resolve()
    if source.ensemble is not None:
        root = source.ensemble.members[0].path.resolve()
    config = root.parent.parent / "config.yaml"
    if not config.is_file():
        raise ConvertError(
            f"{source.path}: lies in no run, so there are no images to calibrate on; give --calibrate IMAGES"
        )
    settings = load.read(config)
    if not Path(settings.data.root).is_dir():
        raise ConvertError(
            f"{config}: its images {settings.data.root} are not there to calibrate on; give --calibrate IMAGES"
        )
    return sources.load(settings.data)
