"""Arrays of pixels in an `.npz`: train_images and train_labels, as MedMNIST has them, or x_train and y_train."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.lib.npyio import NpzFile

from config.errors import DataError
from data.sources import packed
from data.sources.listing import Listing, Sample
from data.sources.splits import Split

_NAMES: tuple[tuple[Split, str, str], ...] = (
    ("train", "train_images", "train_labels"),
    ("val", "val_images", "val_labels"),
    ("test", "test_images", "test_labels"),
    ("train", "x_train", "y_train"),
    ("val", "x_val", "y_val"),
    ("test", "x_test", "y_test"),
)
_WANTED = "wanted: train_images uint8 [N, H, W] or [N, H, W, 3] and train_labels [N], and likewise val_ and test_"


def read(path: Path) -> Listing:
    """The samples of an `.npz`, unpacked once as PNG into the user's cache folder.

    Images are uint8 `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]` RGB, labels integers `[N]` or `[N, 1]`. Raises
    `DataError` for arrays of other shapes, among them several labels for an image.
    """
    unpacked = packed.stored(path, "npz", lambda: (_rows(path), {}))
    samples = []
    for row, (name, label, _, _) in enumerate(unpacked.rows):
        split: Split = next(split for split, _, _ in _NAMES if name.startswith(f"{split}/"))
        samples.append(Sample(name, unpacked.path(row), label, split))
    return Listing(path.parent, f"arrays of {path.name}", samples)


def _rows(path: Path) -> Iterable[tuple[str, str | None, bytes]]:
    """The name, label and PNG (which is lossless) of each image."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            present = [entry for entry in _NAMES if entry[1] in arrays.files]
            if not any(split == "train" for split, _, _ in present):
                raise DataError(f"{path}: its arrays are {', '.join(arrays.files[:8])}; {_WANTED}")
            for split, images, labels in present:
                pixels = arrays[images]
                if pixels.dtype != np.uint8 or (
                    pixels.ndim != 3 and (pixels.ndim != 4 or pixels.shape[3] not in (1, 3))
                ):
                    raise DataError(f"{path}: {images} is {pixels.dtype} {list(pixels.shape)}; {_WANTED}")
                targets = _labels(path, arrays, labels, len(pixels))
                for number, (image, target) in enumerate(zip(pixels, targets, strict=True)):
                    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 and image.shape[2] == 3 else image
                    png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
                    yield f"{split}/{number:06d}", target, bytes(png)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an .npz without pickles ({error}); {_WANTED}") from error


def _labels(path: Path, arrays: NpzFile, name: str, count: int) -> list[str | None]:
    if name not in arrays.files:
        return [None] * count
    labels = arrays[name]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {name} is {labels.dtype} {list(labels.shape)} for {count} images; one integer for each image is "
            "wanted, several labels for an image are not supported"
        )
    return [str(label) for label in labels.tolist()]
