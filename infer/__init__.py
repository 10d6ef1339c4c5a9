"""Inference: members of every runtime, test-time augmentation, ensembles, submissions.

`load` is the way in from Python, `main` the command line (`python -m infer`). No framework is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer.runner import Runner


def load(path: str | Path, views: Sequence[str] | None = None, **options: Any) -> Runner:
    """Open an ensemble's `.yaml`, a checkpoint folder, an `.onnx` or an `.mlpackage` (`PATH` or `PATH@RUNTIME`).

    `views` (names or presets) replaces the ensemble's own. `load(path).predict(["a.jpg", array])` gives the class
    names and float32 `[N, C]` probabilities. Raises `TandemError`s.
    """
    from infer import ensemble
    from infer.runner import Runner
    from infer.views import expand

    is_file = Path(path).suffix in (".yaml", ".yml")
    loaded = ensemble.read(Path(path)) if is_file else ensemble.of([str(path)])
    if views is not None:
        loaded = loaded.model_copy(update={"views": expand(views)})
    return Runner(loaded, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m infer` with these arguments and return its exit code."""
    from infer.__main__ import main as run

    return run(argv)
