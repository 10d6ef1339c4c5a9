"""Checkpoint folders: their card, their weights, and the predictor of the engine that runs them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import backends
from infer.runtimes import RUNTIMES, Predictor
from models import manifest, registry
from models.card import read_card
from models.weights import loading


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
    return cast(Predictor, importlib.import_module(RUNTIMES[engine].module).open(card, spec, arrays, **options))
