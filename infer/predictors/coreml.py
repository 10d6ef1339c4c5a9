"""Core ML packages on a Mac, through coremltools. Elsewhere `mil_reference` evaluates the same file, for checking."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from config.errors import BackendUnavailable
from infer.predictors import images as pixels
from infer.predictors import mil_package
from models.card import Card

ComputeUnits = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]


class CoreMLPredictor:
    """A loaded package; see `infer.predictors.Predictor`. `batches` is empty for an image input, one image a call."""

    runtime = "coreml"

    def __init__(self, card: Card, model: Any, batches: tuple[int, ...]):
        self.card = card
        self._model, self._batches = model, batches

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]` for each input, the package's own `logits` output."""
        given = pixels.checked(images, self.card)
        parts = zip(*(split(one, self._batches or (1,)) for one in given), strict=True)
        rows = [self._answer(part) for part in parts]
        return np.concatenate([np.zeros((0, len(self.card.class_names)), np.float32), *rows])[: len(given[0])]

    def _answer(self, part: tuple[NDArray[np.uint8], ...]) -> NDArray[np.float32]:
        if self._batches:
            named = zip(pixels.names(self.card), part, strict=True)
            answer = self._model.predict({name: one.astype(np.float32) for name, one in named})
        else:
            named = zip(pixels.names(self.card, "image"), part, strict=True)
            answer = self._model.predict({name: Image.fromarray(one[0]) for name, one in named})
        return np.asarray(answer["logits"], np.float32).reshape(len(part[0]), -1)

    def close(self) -> None:
        """Free the model."""
        self._model = None


def open(path: Path, compute_units: ComputeUnits = "ALL") -> CoreMLPredictor:
    """Load an `.mlpackage` on the given compute units; `BackendUnavailable` on anything but macOS."""
    if sys.platform != "darwin":
        raise BackendUnavailable(f"{path}: Core ML runs on macOS only; name it {path}@mil_reference to check it here")
    package = mil_package.read(path)
    ct = mil_package.coremltools()
    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units])
    return CoreMLPredictor(package.card, model, batch_sizes(package))


def batch_sizes(package: mil_package.Package) -> tuple[int, ...]:
    """The batch sizes that a tensor input takes, ascending; empty for an image input."""
    feature = package.spec.description.input[0].type
    if feature.WhichOneof("Type") == "imageType":
        return ()
    array = feature.multiArrayType
    shapes = [s.shape for s in array.enumeratedShapes.shapes] or [array.shape]
    return tuple(sorted(int(shape[0]) for shape in shapes))


def split(images: NDArray[np.uint8], batches: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    """Cut `images` into parts of allowed sizes, the largest first; the last is padded with its last image."""
    parts: list[NDArray[np.uint8]] = []
    start = 0
    while start < len(images):
        left = len(images) - start
        size = max((b for b in batches if b <= left), default=min(batches))
        part = images[start : start + size]
        parts.append(np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]))
        start += size
    return parts
