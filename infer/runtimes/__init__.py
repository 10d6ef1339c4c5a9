"""Everything that gives logits, behind one interface: checkpoints on an engine, ONNX files, Core ML packages.

`open` chooses the runtime by the kind of path; each runtime's module, and so its framework, is imported only then. A
module of this folder that declares `SUFFIX`, of the artefacts that it opens ("" for checkpoint folders), and `OPTIONS`,
those of `ensemble.options.RunOptions` that it takes, is a runtime.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

import backends
from config.errors import CheckpointError, ConfigError, TandemWarning
from config.sections import declared
from models.card import Card, read_card

_WEIGHTS = "model.safetensors"


class Runtime(NamedTuple):
    """The declarations of a runtime's `module`; an engine, which runs checkpoint folders, has the `suffix` ""."""

    suffix: str
    options: tuple[str, ...]
    module: str


def _declared() -> dict[str, Runtime]:
    files = sorted(Path(__file__).parent.glob("*.py"), reverse=True)
    rows = {file.stem: [declared.literal(file, name) for name in ("SUFFIX", "OPTIONS")] for file in files}
    return {
        name: Runtime(suffix, options, f"infer.runtimes.{name}")
        for name, (suffix, options) in rows.items()
        if options is not None
    }


RUNTIMES = _declared()


class Predictor(Protocol):
    """A model that is ready to predict. `card` says what to feed it, `runtime` what runs it."""

    card: Card
    runtime: str

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]` RGB for each of the card's inputs; no normalisation before."""

    def close(self) -> None:
        """Free its memory."""


@runtime_checkable
class Describes(Protocol):
    """A predictor that chose a device and a precision."""

    def describe(self) -> str:
        """Both, and whether it is compiled, as one line."""


@runtime_checkable
class GivesFeatures(Protocol):
    """A predictor of a network that also gives its pooled features: those before the classifier."""

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, D]` of uint8 `[N, S, S, 3]`, as timm's `forward_head(forward_features(x), pre_logits=True)`."""


def open(path: Path, runtime: str | None = None, **options: Any) -> Predictor:
    """Open an artefact on `runtime`, or on the one that suits it (`choose`).

    Raises `ConfigError` for a runtime that cannot run it, `CheckpointError` or `WeightsError` for an artefact that is
    missing, damaged or carries no card, `BackendUnavailable` when the runtime is not installed.
    """
    chosen = choose(path, runtime)
    if chosen == "mil_reference" and runtime is None:
        warnings.warn(
            f"{path}: Core ML does not run here; its operations are evaluated one by one, for checking, not for speed",
            TandemWarning,
            stacklevel=2,
        )
    module = RUNTIMES[chosen].module
    if not RUNTIMES[chosen].suffix:
        module, options = "infer.runtimes.checkpoint", {"engine": chosen, **options}
    return cast(Predictor, importlib.import_module(module).open(path, **options))


def choose(path: Path, runtime: str | None = None) -> str:
    """The runtime that will run `path`; `ConfigError` when a requested `runtime` cannot."""
    possible = _possible(path)
    if runtime is None:
        if not RUNTIMES[possible[0]].suffix:
            return _engine(path, possible)
        return possible[-1] if sys.platform == "darwin" else possible[0]
    if runtime not in RUNTIMES:
        near = difflib.get_close_matches(runtime, RUNTIMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{path}: runtime {runtime!r} is not known; {hint}there are {', '.join(RUNTIMES)}")
    if runtime not in possible:
        raise ConfigError(f"{path}: {runtime} cannot run it; it runs on {' or '.join(possible)}")
    return runtime


def _possible(path: Path) -> tuple[str, ...]:
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such checkpoint, {_suffixes()}")
    suffix = "" if (path / _WEIGHTS).is_file() else path.suffix or "none"
    fitting = tuple(name for name, runtime in RUNTIMES.items() if runtime.suffix == suffix)
    if not fitting:
        checkpoints = sorted(p.parent for p in path.glob(f"**/{_WEIGHTS}")) if path.is_dir() else []
        named = [p for p in checkpoints if p.name == "best"] or checkpoints
        hint = f"; it holds the checkpoints {', '.join(map(str, named[:3]))}" if checkpoints else ""
        raise CheckpointError(f"{path}: is no checkpoint folder, {_suffixes()}{hint}")
    return fitting


def _suffixes() -> str:
    return " or ".join(sorted({runtime.suffix for runtime in RUNTIMES.values()} - {""}, reverse=True))


def _engine(path: Path, engines: tuple[str, ...]) -> str:
    """The engine that trained the checkpoint; where it is not installed, the other one that runs the same weights."""
    trained = read_card(path).trained_with
    if trained in engines and not backends.missing(trained):
        return trained
    return "torch" if not backends.missing("torch") or backends.missing("mlx") else "mlx"
