"""Runs a saved Core ML package where Core ML does not exist: its own operations, one by one, for checking, not speed.

What each operation does is in `evaluate` and `ops`; here it becomes a predictor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from backends import installed
from config.errors import BackendUnavailable, WeightsError
from infer.runtimes import images as pixels
from infer.runtimes.coreml import batch_sizes
from infer.runtimes.mil import package as mil_package
from infer.runtimes.mil import program as mil_program
from infer.runtimes.mil.program import Program
from models.card import Card

if TYPE_CHECKING:
    from torch import Tensor

    from infer.runtimes.mil.evaluate import Evaluator, Mode

SUFFIX = ".mlpackage"
OPTIONS = ()


class MilReferencePredictor:
    """The evaluator as a predictor; see `infer.runtimes.Predictor`."""

    runtime = "mil_reference"

    def __init__(self, card: Card, evaluator: Evaluator, batches: tuple[int, ...]):
        self.card = card
        self._evaluator, self._batches = evaluator, batches

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]` for each input."""
        return self.exact(*images).astype(np.float32)

    def exact(self, *images: NDArray[np.uint8]) -> NDArray[np.floating]:
        """`logits` in the evaluator's own dtype: float64 in that mode."""
        arrays = pixels.checked(images, self.card)
        blocks = zip(*(pixels.split(array, self._batches or (1,)) for array in arrays), strict=True)
        rows = [self._predict(block) for block in blocks]
        empty = np.zeros((0, len(self.card.class_names)), np.float32)
        return np.concatenate([empty.astype(rows[0].dtype if rows else np.float32), *rows])[: len(arrays[0])]

    def _predict(self, block: tuple[NDArray[np.uint8], ...]) -> NDArray[np.floating]:
        arrays = [array if self._batches else np.moveaxis(array, 3, 1) for array in block]
        names = pixels.names(self.card, "images" if self._batches else "image")
        feeds = {name: array.astype(np.float32) for name, array in zip(names, arrays, strict=True)}
        logits = cast("Tensor", self._evaluator.run(feeds)["logits"]).reshape(len(block[0]), -1).numpy()
        if logits.shape[1] != len(self.card.class_names):
            classes = len(self.card.class_names)
            raise WeightsError(
                f"its program gives {logits.shape[1]} logits, its card says {classes} classes; convert it again"
            )
        return logits

    def close(self) -> None:
        """Nothing is held outside Python."""


def open(path: Path, mode: Mode = "native") -> MilReferencePredictor:
    """Read an `.mlpackage` and check that every operation is known.

    Raises `CheckpointError`, `WeightsError` or `UnsupportedOperation`; `BackendUnavailable` without coremltools, whose
    protocol definitions are used, or torch.
    """
    if not installed("torch"):
        raise BackendUnavailable(f'{path}: needs torch, not installed here; run: pip install -e ".[convert]"')
    from infer.runtimes.mil.evaluate import Evaluator

    package = mil_package.read(path)
    program = mil_program.parse(package)
    _check_interface(package, program)
    return MilReferencePredictor(package.card, Evaluator(program, mode), batch_sizes(package))


def _check_interface(package: mil_package.Package, program: Program) -> None:
    inputs = [i.name for i in program.inputs]
    possible = [list(pixels.names(package.card, stem)) for stem in ("image", "images")]
    if inputs not in possible or "logits" not in program.outputs:
        raise WeightsError(f"{package.path}: takes {inputs} and gives {list(program.outputs)}, not as `convert` writes")
    for operation in program.operations:
        if operation.kind == "classify" and operation.inputs.get("classes") != (package.card.class_names,):
            raise WeightsError(f"{package.path}: its class labels differ from its card's; convert it again")
