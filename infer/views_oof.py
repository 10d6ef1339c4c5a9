"""Out-of-fold predictions with TTA views: each fold's best checkpoint predicts its validation images in every view.

They are written beside `oof.npz`, one file for each set of views and merge; `oof_files.read` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import ConfigError, DataError
from config.places import atomic_path
from config.text import counted
from data import sources
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.oof import npz, oof_files
from ensemble.weighting.average import Merge
from infer.runner import Runner

_TINY = np.finfo(np.float32).tiny


def predict(run: Path, views: Sequence[str], merge: Merge, batch_size: int, workers: int) -> Iterator[str]:
    """Write the predictions of each finished fold that has none yet; yields one line for each.

    `CheckpointError` for a run without finished folds, `DataError` when an image of its OOF predictions is missing.
    """
    name = oof_files.view_file(views, merge)
    if name == oof_files.OOF:
        raise ConfigError("--tta: the original view alone is what training has answered already; name more views")
    folds = oof_files.finished(run)
    oof_files.read(run)  # checks every file before the first image is decoded
    data = load.read(run / "config.yaml").data
    paths: dict[str, Path] = {}
    if not all((fold / name).exists() for fold in folds):
        table = sources.load(data)
        paths = dict(zip(table.ids, table.paths, strict=True))
    for fold in folds:
        target = fold / name
        if target.exists():
            yield f"{target}: is there already"
            continue
        arrays = npz.read(fold / oof_files.OOF)
        ensemble = Ensemble(merge=merge, views=tuple(views), members=(Member(path=fold / oof_files.BEST),))
        missing = [str(image) for image in arrays["ids"] if str(image) not in paths]
        if missing:
            raise DataError(f"{run}: its data set has no image {missing[0]!r} any more; give it back its images")
        files = [paths[str(image)] for image in arrays["ids"]]
        logits = _log_probabilities(ensemble, files, batch_size, workers, data.on_bad_image == "partial")
        with atomic_path(target) as unfinished, unfinished.open("wb") as file:
            np.savez(file, ids=arrays["ids"], logits=logits, targets=arrays["targets"])
        yield f"wrote {target}: {counted(len(logits), 'image')}, {counted(len(views), 'view')}"


def _log_probabilities(
    ensemble: Ensemble, paths: list[Path], batch_size: int, workers: int, partial: bool
) -> NDArray[np.float32]:
    """Log probabilities float32 `[N, C]`; underflow gives the smallest float32. With `partial`, as in the run, what
    remains of truncated files is taken; `DataError` for an image that can no longer be read."""
    with Runner(ensemble) as runner:
        batches = list(runner.run(paths, batch_size, workers, "partial" if partial else "error"))
    errors = {row: text for batch in batches for row, text in batch.errors.items()}
    if errors:
        raise DataError(errors[min(errors)])
    return np.log(np.maximum(np.concatenate([batch.probabilities for batch in batches]), _TINY))
