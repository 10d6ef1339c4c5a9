"""Reads an `.mlpackage`: its specification, its card, the folder of its weights. Also imports coremltools for all.

Nothing here runs a model; `coreml` and `mil_reference` do.
"""

from __future__ import annotations

import importlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import installed
from config.errors import BackendUnavailable, CheckpointError, WeightsError
from models.card import CARD_KEY, Card


@dataclass(frozen=True)
class Package:
    """An opened package: `spec` is Core ML's `Model` message, `folder` what `@model_path` stands for."""

    path: Path
    spec: Any
    folder: Path
    card: Card


def coremltools(module: str = "coremltools") -> Any:
    """Import coremltools, or a module of it, without its notes about versions that it has not been tested with.

    `BackendUnavailable` where it is not installed or has no wheel.
    """
    if not installed("coremltools"):
        raise BackendUnavailable(
            'Core ML packages need coremltools, not installed here; run: pip install -e ".[convert]" '
            "(wheels: macOS and Linux x86-64, Python 3.11 to 3.13)"
        )
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return importlib.import_module(module)


def read(path: Path) -> Package:
    """Read a package. `CheckpointError` when there is none, `WeightsError` when it is damaged or has no card."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such .mlpackage folder")
    file = path / "Data" / _root_model(path)
    message = coremltools("coremltools.proto.Model_pb2").Model()
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        message.ParseFromString(file.read_bytes())
    except (OSError, decode_error) as error:
        raise WeightsError(f"{file}: the model specification cannot be read ({error}); convert it again") from error
    card = Card.from_json(message.description.metadata.userDefined.get(CARD_KEY), str(path))
    return Package(path=path, spec=message, folder=file.parent, card=card)


def _root_model(path: Path) -> str:
    try:
        manifest = json.loads((path / "Manifest.json").read_text())
        name = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: is no whole Core ML package ({error!r}); convert it again") from error
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise WeightsError(f"{path}: its manifest points out of the package ({name}); convert it again")
    return str(name)
