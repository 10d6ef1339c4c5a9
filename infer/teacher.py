"""A teacher's predictions, made from finished runs: fold by fold, so that no student learns of its validation images.

`ensemble.oof.teacher_file` writes them; `training.run.distillation` trains on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import ConfigError, DataError, TandemWarning
from config.text import counted
from data import csvfile, sources
from data.audit import actions
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.oof import oof_files
from ensemble.oof.teacher_file import TeacherPredictions, logarithm
from infer.io.inputs import Inputs, of_paths
from infer.runner import OnBad, Runner
from models.card import check_classes


def predict(
    runs: Sequence[Path],
    images: Path | None,
    views: Sequence[str] = ("original",),
    id_column: str = "ID",
    batch_size: int = 64,
    workers: int = 0,
    mixture: Ensemble | None = None,
    on_bad_image: OnBad = "skip",
) -> TeacherPredictions:
    """Predictions of each fold's members of `runs` together for the images of a folder or CSV.

    All weigh the same, or as in `mixture`: an ensemble of the runs' best checkpoints, whose views and temperatures
    are taken too. Without `images` these are the runs' own training images, less those that validate the fold. An image
    that cannot be read has no answer, and a warning counts them (`skip`); `partial` takes what remains of truncated
    files, `error` stops. Raises `ConfigError` when the runs are not of one split or know different classes, `DataError`
    where no image can be read.
    """
    finished = [oof_files.read(run) for run in runs]
    check_classes([(str(run.path), run.class_names) for run in finished])
    split = common_folds(runs, "train one of them with --folds.file of the other")
    if images is None:
        table = actions.load(load.read(runs[0] / "config.yaml").data).table
    else:
        table = sources.load_test(images, id_column)
    rows_of_folds, bad = [], dict[str, str]()
    ensemble = mixture or Ensemble(members=tuple(m for _, some in _by_fold(finished) for m in some), views=tuple(views))
    for fold, members in _by_fold(finished):
        chosen = members if mixture is None else _weighted(mixture, members, fold)
        rows = [i for i, name in enumerate(table.ids) if images is not None or split.get(name) != fold]
        inputs = of_paths([table.paths[i] for i in rows], [table.ids[i] for i in rows])
        with Runner(ensemble.model_copy(update={"members": chosen})) as runner:
            predictions, errors = _predicted(runner, inputs, batch_size, workers, on_bad_image)
        bad |= {inputs.ids[row]: text for row, text in errors.items()}
        good = [row for row in range(len(inputs)) if row not in errors]
        rows_of_folds.append((np.array(inputs.ids)[good], predictions[good], np.full(len(good), fold, dtype=np.int64)))
    ids, predictions, fold_of = (np.concatenate(column) for column in zip(*rows_of_folds, strict=True))
    if not len(ids):
        raise DataError(f"none of the {len(bad)} images can be read; the first: {next(iter(bad.values()))}")
    if bad:
        warnings.warn(
            f"no answer for {counted(len(bad), 'unreadable image')}; the first: {next(iter(bad.values()))}",
            TandemWarning,
            stacklevel=2,
        )
    return TeacherPredictions("", ids, logarithm(predictions), finished[0].class_names, fold_of, split, frozenset(bad))


def _predicted(
    runner: Runner, inputs: Inputs, batch_size: int, workers: int, on_bad_image: OnBad
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Probabilities float32 `[N, C]`, and why an image could not be read, by its row."""
    errors: dict[int, str] = {}
    predictions = np.zeros((len(inputs), len(runner.class_names)), dtype=np.float32)
    truncated: dict[int, str] | None = {} if on_bad_image == "partial" else None
    grid = runner.grid(len(inputs), batch_size)
    for batch in runner.stream(inputs, grid, workers, on_bad_image != "error", truncated):
        predictions[batch.rows] = batch.probabilities
        errors.update(batch.errors)
    if truncated:
        first = truncated[min(truncated)]
        warnings.warn(
            f"{counted(len(truncated), 'truncated image')} predicted from what remains; the first: {first}",
            TandemWarning,
            stacklevel=3,
        )
    return predictions, errors


def common_folds(runs: Sequence[Path], remedy: str) -> dict[str, int]:
    """The fold of each image; `ConfigError`, with the remedy, where two runs have other folds."""
    splits = [_folds(run / "folds.csv") for run in runs]
    for run, split in zip(runs, splits, strict=True):
        if split != splits[0]:
            raise ConfigError(
                f"{run}: its folds.csv differs from that of {runs[0]}, so that no fold is unseen by both; {remedy}"
            )
    return splits[0]


def _folds(path: Path) -> dict[str, int]:
    rows = csvfile.read(path, ("ID", "fold"))
    wrong = [row for row in rows if not row.cells["fold"].removeprefix("-").isdecimal()]
    if wrong:
        raise DataError(f"{path}: line {wrong[0].line} has fold {wrong[0].cells['fold']!r}, no number; mend that line")
    return {row.cells["ID"]: int(row.cells["fold"]) for row in rows}


def _by_fold(runs: Sequence[oof_files.Run]) -> Iterator[tuple[int, tuple[Member, ...]]]:
    """Each fold's number and best checkpoints."""
    folds = [fold for run in runs for fold in run.folds]
    for number in sorted(set(map(oof_files.number, folds))):
        yield number, tuple(Member(path=fold / oof_files.BEST) for fold in folds if oof_files.number(fold) == number)


def _weighted(mixture: Ensemble, members: Sequence[Member], fold: int) -> tuple[Member, ...]:
    """The mixture's members among these, with their weights and temperatures; `ConfigError` where it has none."""
    paths = {member.path.resolve() for member in members}
    weighted = tuple(m for m in mixture.members if m.weight > 0 and m.path.resolve() in paths)
    if not weighted:
        raise ConfigError(f"the ensemble has no member of fold {fold}, so that no student of that fold could be taught")
    return weighted
