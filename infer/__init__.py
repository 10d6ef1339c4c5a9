"""Inference: members of every runtime, test-time augmentation, ensembles, submissions, scores.

`load` and `evaluate` are the ways in from Python, `main` the command line (`python -m infer`). No framework is imported
here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from infer.evaluation.scoring import Evaluation
    from infer.model_cache import Keep
    from infer.runner import Runner

__all__ = ["evaluate", "load", "main"]


def load(
    path: str | os.PathLike[str],
    views: Sequence[str] | None = None,
    merge: str | None = None,
    keep: Keep = "auto",
    **options: Any,
) -> Runner:
    """Open an ensemble's `.yaml`, a checkpoint folder, an `.onnx` or an `.mlpackage` (`PATH` or `PATH@RUNTIME`).

    `views` (names or presets) and `merge` (`probabilities`, `logits`, `geometric`, `max`) replace the ensemble's own.
    `keep` says which members stay in memory: `all`, `one` at a time, or `auto`, all that fit. `options` are those of
    `ensemble.options.RunOptions`: `device`, `precision`, `compile`, `channels_last`, `provider`, `compute_unit`.

    `load(path).predict(["a.jpg", array])` gives the class names and float32 `[N, C]` probabilities, from any thread.
    Raises `TandemError`s, before any image is looked at.
    """
    from ensemble import ensemble_file
    from ensemble.options import given
    from infer.member import ensemble_of
    from infer.runner import Runner

    text = os.fspath(path)
    is_file = text.endswith((".yaml", ".yml"))
    loaded = ensemble_file.read(Path(text)) if is_file else ensemble_of([text])
    return Runner(ensemble_file.with_views(loaded, views, merge), given(options), keep)


def evaluate(
    runner: Runner,
    data: Path | str,
    split: Literal["train", "val", "test", "all"] | None = None,
    on_bad_image: Literal["skip", "partial", "error"] = "skip",
    out: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Score an opened runner on the labelled images of a data set; see `infer.evaluation.scoring`.

    `data` is a folder, table, Parquet, shards or arrays, as `data.root` of a training. `split` None takes the test
    split where it has labels, else the validation split, else all images. `out` is a new folder for the files and the
    report page that `python -m infer evaluate` writes. Raises `DataError` for a split without labels and for classes
    that the members do not know.
    """
    from infer.evaluation import report

    return report.evaluate(runner, data, split, on_bad_image, Path(out) if out is not None else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m infer` with these arguments and return its exit code."""
    from infer.__main__ import main as run

    return run(argv)
