"""Core ML packages on a Mac, through coremltools. Elsewhere `mil_reference` evaluates the same file, for checking."""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from config.errors import BackendUnavailable
from config.places import cache_folder
from ensemble.options import ComputeUnit
from infer.runtimes import images as pixels
from infer.runtimes.mil import package as mil_package
from models import manifest
from models.card import Card

SUFFIX = ".mlpackage"
OPTIONS = ("compute_unit",)


class CoreMLPredictor:
    """A loaded package; see `infer.runtimes.Predictor`. `batches` is empty for an image input, one image a call."""

    runtime = "coreml"

    def __init__(self, card: Card, model: Any, batches: tuple[int, ...]):
        self.card = card
        self._model, self._batches = model, batches

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]` for each input, the package's own `logits` output."""
        arrays = pixels.checked(images, self.card)
        blocks = list(zip(*(pixels.split(array, self._batches or (1,)) for array in arrays), strict=True))
        rows = self._predict(blocks) if blocks else []
        return np.concatenate([np.zeros((0, len(self.card.class_names)), np.float32), *rows])[: len(arrays[0])]

    def _predict(self, blocks: list[tuple[NDArray[np.uint8], ...]]) -> list[NDArray[np.float32]]:
        """The logits of each block; single images pass in one call, which Core ML overlaps."""
        names = pixels.names(self.card, "images" if self._batches else "image")
        feeds = [dict(zip(names, block, strict=True)) for block in blocks]
        if self._batches:
            outputs = [self._model.predict({n: array.astype(np.float32) for n, array in f.items()}) for f in feeds]
        else:
            outputs = self._model.predict([{n: Image.fromarray(array[0]) for n, array in f.items()} for f in feeds])
        return [
            np.asarray(o["logits"], np.float32).reshape(len(b[0]), -1) for o, b in zip(outputs, blocks, strict=True)
        ]

    def close(self) -> None:
        """Free the model."""
        self._model = None


def open(path: Path, compute_units: ComputeUnit = "ALL") -> CoreMLPredictor:
    """Load an `.mlpackage` on the given compute units; `BackendUnavailable` on anything but macOS, and with the reason
    where Core ML does not load it.

    What Core ML compiled is kept in the user's cache folder, by the package's content and the system's version.
    """
    if sys.platform != "darwin":
        raise BackendUnavailable(f"{path}: Core ML runs on macOS only; name it {path}@mil_reference to check it here")
    package = mil_package.read(path)
    ct = mil_package.coremltools()
    units, compiled = ct.ComputeUnit[compute_units], _compiled_path(path)
    if not compiled.is_dir():
        _compile(ct, path, compiled)
    try:
        model = ct.models.CompiledMLModel(str(compiled), compute_units=units)
    except Exception as error:  # coremltools raises bare exceptions and RuntimeErrors here
        shutil.rmtree(compiled, ignore_errors=True)
        raise BackendUnavailable(f"{path}: Core ML cannot load it on {compute_units} ({_line(error)})") from error
    return CoreMLPredictor(package.card, model, batch_sizes(package))


def _compiled_path(path: Path) -> Path:
    digest = hashlib.sha256(platform.mac_ver()[0].encode())
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)} {manifest.sha256(file)}\n".encode())
    return cache_folder() / "coreml" / f"{digest.hexdigest()[:32]}.mlmodelc"


def _compile(ct: Any, path: Path, target: Path) -> None:
    """Compile the package to `target`, all or nothing."""
    # What is compiled is the same for all compute units; loading is fastest on the CPU.
    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit["CPU_ONLY"])
    # A model that does not load is a warning in coremltools, and an error at the first prediction only.
    if model.__proxy__ is None:
        raise BackendUnavailable(f"{path}: Core ML cannot load it ({_line(model._framework_error)})")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copied = Path(shutil.copytree(model.get_compiled_model_path(), Path(folder) / target.name))
        try:
            copied.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _line(error: object) -> str:
    return " ".join(str(error or "it gives no reason").split())[:200]


def batch_sizes(package: mil_package.Package) -> tuple[int, ...]:
    """The batch sizes that a tensor input takes, ascending; empty for an image input."""
    feature = package.spec.description.input[0].type
    if feature.WhichOneof("Type") == "imageType":
        return ()
    array = feature.multiArrayType
    shapes = [s.shape for s in array.enumeratedShapes.shapes] or [array.shape]
    return tuple(sorted(int(shape[0]) for shape in shapes))
