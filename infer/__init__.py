"""Inference: members of every runtime, test-time augmentation, ensembles, submissions.

`load` is the way in from Python, `main` the command line (`python -m infer`). No framework is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer.residency import Keep
    from infer.runner import Runner


def load(
    path: str | Path,
    views: Sequence[str] | None = None,
    merge: str | None = None,
    keep: Keep = "auto",
    **options: Any,
) -> Runner:
    """Open an ensemble's `.yaml`, a checkpoint folder, an `.onnx` or an `.mlpackage` (`PATH` or `PATH@RUNTIME`).

    `views` (names or presets) and `merge` (`probabilities`, `logits`, `geometric`, `max`) replace the ensemble's own.
    `keep` says which members stay in memory: `all`, `one` at a time, or `auto`, all that fit. `options` are those of
    `infer.options.RunOptions`: `device`, `precision`, `compile`, `channels_last`, `provider`, `compute_unit`.

    `load(path).predict(["a.jpg", array])` gives the class names and float32 `[N, C]` probabilities, from any thread.
    Raises `TandemError`s, before any image is looked at.
    """
    from infer import ensemble
    from infer.options import given
    from infer.runner import Runner

    is_file = Path(path).suffix in (".yaml", ".yml")
    loaded = ensemble.read(Path(path)) if is_file else ensemble.of([str(path)])
    return Runner(ensemble.seen(loaded, views, merge), given(options), keep)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m infer` with these arguments and return its exit code."""
    from infer.__main__ import main as run

    return run(argv)
