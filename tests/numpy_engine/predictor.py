"""A session of the numpy engine as a runtime of inference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.contract import Session, Weights
from infer.runtimes import images as pixels
from models.card import Card
from models.registry import ModelSpec
from tests.numpy_engine import session


def open(card: Card, spec: ModelSpec, weights: Weights) -> NumpyPredictor:
    return NumpyPredictor(card, session.open(spec, weights))


class NumpyPredictor:
    """A session of the numpy engine that only answers; see `infer.runtimes.Predictor`."""

    runtime = "numpy"

    def __init__(self, card: Card, session: Session):
        self.card = card
        self._session = session

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]`."""
        (given,) = pixels.checked(images, self.card)
        return self._session.logits(given)

    def close(self) -> None:
        """Free the session."""
        self._session.close()
