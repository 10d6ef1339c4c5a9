"""Out-of-fold answers with TTA views: each fold's best checkpoint sees its own validation images in every view.

They stand beside `oof.npz`, one file for each set of views and way to merge them, and `oof_files.read` finds them
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import ConfigError, DataError
from config.places import atomic_path
from config.sections.data import Data
from config.text import counted
from data import sources
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.oof import npz, oof_files
from ensemble.weighting.average import Merge
from infer.runner import Runner

_TINY = np.finfo(np.float32).tiny


def answer(run: Path, views: Sequence[str], merge: Merge, batch_size: int, workers: int) -> Iterator[str]:
    """Write the answers of each finished fold that has none yet; one line for each.

    `CheckpointError` for a run without finished folds, `DataError` when an image of its OOF answers is gone.
    """
    name = oof_files.view_file(views, merge)
    if name == oof_files.OOF:
        raise ConfigError("--tta: the original view alone is what training has answered already; name more views")
    folds = oof_files.finished(run)
    oof_files.read(run)  # every file is whole, before the first image is decoded
    data = load.read(run / "config.yaml").data
    paths = _paths(data) if not all((fold / name).exists() for fold in folds) else {}
    for fold in folds:
        target = fold / name
        if target.exists():
            yield f"{target}: is there already"
            continue
        arrays = npz.read(fold / oof_files.OOF)
        ensemble = Ensemble(merge=merge, views=tuple(views), members=(Member(path=fold / oof_files.BEST),))
        files = [_path(paths, str(name), run) for name in arrays["ids"]]
        logits = _answered(ensemble, files, batch_size, workers, data.on_bad_image == "partial")
        with atomic_path(target) as unfinished, unfinished.open("wb") as file:
            np.savez(file, ids=arrays["ids"], logits=logits, targets=arrays["targets"])
        yield f"wrote {target}: {counted(len(logits), 'image')}, {counted(len(views), 'view')}"


def _answered(
    ensemble: Ensemble, paths: list[Path], batch_size: int, workers: int, partial: bool
) -> NDArray[np.float32]:
    """Log probabilities float32 `[N, C]`; what underflows is the smallest number there is. With `partial`, as the run
    had it, what remains of truncated files is taken; `DataError` for an image that can no longer be read."""
    with Runner(ensemble) as runner:
        answers = list(runner.run(paths, batch_size, workers, "partial" if partial else "error"))
    errors = {row: text for batch in answers for row, text in batch.errors.items()}
    if errors:
        raise DataError(errors[min(errors)])
    parts = [batch.probabilities for batch in answers]
    return np.log(np.maximum(np.concatenate(parts), _TINY))


def _paths(data: Data) -> dict[str, Path]:
    table = sources.load(data)
    return dict(zip(table.ids, table.paths, strict=True))


def _path(paths: dict[str, Path], name: str, run: Path) -> Path:
    if name not in paths:
        raise DataError(f"{run}: its data set has no image {name!r} any more; give it back its images")
    return paths[name]
