"""Checkpoint folders: their card, their weights, and the predictor of the engine that runs them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import backends
from backends.contract import Weights
from infer.runtimes import RUNTIMES, Predictor
from models import manifest, registry
from models.card import Card, read_card
from models.registry import ModelSpec
from models.weights import loading


def open(path: Path, engine: str, **options: Any) -> Predictor:
    """The checkpoint's EMA weights where it has them, else its weights, on `engine` with the options of its predictor.

    Every file is checked against the manifest first. Raises `CheckpointError`, `WeightsError`, `BackendUnavailable`.
    """
    card, spec, weights = read(path, engine)
    return cast(Predictor, importlib.import_module(RUNTIMES[engine].module).open(card, spec, weights, **options))


def read(path: Path, engine: str) -> tuple[Card, ModelSpec, Weights]:
    """The card, the spec and the weights of a checkpoint, for `engine`; raises as `open` does."""
    backends.require(engine)
    card = read_card(path)
    spec = registry.of_card(card, str(path))
    manifest.verify(path)
    return card, spec, loading.read(weights_file(path))[0]


def weights_file(path: Path) -> Path:
    """The EMA weights of a checkpoint folder where it has them, else its weights."""
    averaged = path / loading.EMA_FILE
    return averaged if averaged.exists() else path / loading.MODEL_FILE
