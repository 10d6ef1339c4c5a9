"""Checkpoint folders: their card, their weights, and the predictor of the engine that runs them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import backends
from backends.contract import Session, SessionConfig
from infer.runtimes import Predictor
from infer.runtimes import images as pixels
from models import manifest, registry
from models.card import Card, read_card
from models.weights import loading


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


def open(path: Path, engine: str, **options: Any) -> Predictor:
    """The checkpoint's EMA weights where it has them, else its weights, on `engine` with the options of its predictor.

    Every file is checked against the manifest first. Raises `CheckpointError`, `WeightsError`, `BackendUnavailable`.
    """
    backends.require(engine)
    card = read_card(path)
    spec = registry.of_card(card, str(path))
    manifest.verify(path)
    averaged = path / "ema.safetensors"
    arrays, _ = loading.read(averaged if averaged.exists() else path / "model.safetensors")
    if engine == "numpy":
        return NumpyPredictor(card, backends.load(engine).open(spec, arrays, SessionConfig(**options)))
    module = importlib.import_module(f"infer.runtimes.{engine}")
    return cast(Predictor, module.open(card, spec, arrays, **options))
