"""Converts checkpoints to ONNX and Core ML, and verifies that they predict alike: `python -m convert`.

`convert` is the Python function. `load` imports the module of a format, and with it the frameworks that it needs.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from backends import installed
from config.errors import BackendUnavailable

__all__ = ["convert", "require"]


@dataclass(frozen=True)
class Target:
    """A format: the suffix of its artefacts and the frameworks that writing it needs."""

    suffix: str
    module: str
    needs: tuple[str, ...]


TARGETS = {
    "onnx": Target(".onnx", "convert.onnx.export", ("torch", "timm", "onnx", "onnxscript")),
    "coreml": Target(".mlpackage", "convert.coreml.mlpackage", ("torch", "timm", "coremltools")),
}


def convert(
    path: str | os.PathLike[str],
    to: str | Sequence[str],
    precision: str | Sequence[str] = "fp32",
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Path]:
    """Write a checkpoint, each fold of a run, or an ensemble as "onnx" or "coreml"; the paths of what was written.

    `path`, `precision` ("fp32", "fp16", ...), `out` and `verify` (images to compare on) are those of the command line,
    and so are the `options`: `convert.export.OPTIONS`. Raises `ConfigError`, `BackendUnavailable` and
    `ConvertError`, of which `VerificationFailed` says that an artefact is outside its limits.
    """
    from convert import export

    return export.artefacts(path, to, precision, {**options, "out": out, "overwrite": overwrite, "verify": verify})


def require(target: str) -> None:
    """Raise `BackendUnavailable`, naming the install command, when something that `target` needs is missing."""
    missing = [module for module in TARGETS[target].needs if not installed(module)]
    if missing:
        wheels = " (coremltools: macOS and Linux x86-64 only)" if "coremltools" in missing else ""
        raise BackendUnavailable(
            f"writing {target} needs {' and '.join(missing)}, not installed here; "
            f'run: pip install -e ".[convert]"{wheels}'
        )


def load(target: str) -> ModuleType:
    """The module that writes `target` ("onnx", "coreml"): `write(network, card, out, precision, ...)`."""
    require(target)
    return importlib.import_module(TARGETS[target].module)
